// SPDX-License-Identifier: BSD-3-Clause
//
// The log: one JSON object a line, for failures and slow requests only. Fastify's own logger stays off, because with one it makes a child logger and two
// listeners for each request, which the look-up path would pay for and nobody would read.

export type Level = 'info' | 'warn' | 'error'
export type Fields = Record<string, unknown>
export type Log = (level: Level, message: string, fields?: Fields) => void

// Control characters: JSON escapes those below space; DEL and C1 would reach a terminal, and U+2028/9 break lines for some readers.
// eslint-disable-next-line no-control-regex -- control characters are what it looks for
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g

/** Text that came from outside, made safe to print and bounded. */
export function printable (text: string): string {
  return text.slice(0, 1024).replace(CONTROL, '?')
}

export function createLog (write: (line: string) => void): Log {
  return (level, message, fields = {}) => {
    const line: Fields = { time: new Date().toISOString(), level, message: printable(message) }
    for (const [key, value] of Object.entries(fields)) line[key] = typeof value === 'string' ? printable(value) : value
    write(`${JSON.stringify(line)}\n`)
  }
}

/** For uses where nobody reads: generating the OpenAPI document, tests. */
export const silent: Log = () => {}
