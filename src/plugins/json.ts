// SPDX-License-Identifier: BSD-3-Clause
//
// JSON that means one thing only. JSON.parse takes the last of two equal keys, replaces broken UTF-8, passes lone surrogates and rounds numbers; each of
// these would let a client mean one thing and the service do another. JSON.parse settles the syntax and the values; a scan over the same text then
// refuses what it let pass.
import { isUtf8 } from 'node:buffer'
import { ServiceError } from '../errors.js'

const DEPTH_MAX = 32

function refuse (pointer: string, reason: string): never {
  throw new ServiceError('REQUEST_INVALID', 'The body is not acceptable JSON.', { errors: [{ in: 'body', pointer, reason }] })
}

/** A key as a part of a JSON pointer (RFC 6901). */
export function pointerPart (key: string): string {
  return key.replaceAll('~', '~0').replaceAll('/', '~1')
}

interface Level {
  /** Keys so far; undefined in an array. */
  keys: Set<string> | undefined
  /** Of the member that is being read; undefined before the first. */
  key: string | undefined
  /** Of the element that is being read. */
  index: number
  expectsKey: boolean
}

const BACKSLASH = 0x5c
const LONE_SURROGATE = /\p{Surrogate}/u
const NUMBER = /-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y

/**
 * Whether the double that JSON.parse made is a safe integer that the text does not say. Larger values are left to the schema's maximum, which has a
 * better answer; only a rounding into the allowed range would go unseen.
 */
function roundsIntoRange (text: string): boolean {
  const value = Number(text)
  if (!Number.isFinite(value)) return true
  if (!Number.isSafeInteger(value) || /^-?[0-9]+$/.test(text)) return false
  return !isExactly(text, value)
}

function isExactly (text: string, value: number): boolean {
  const match = /^-?([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?$/.exec(text)
  if (match === null) return false
  const fraction = match[2] ?? ''
  const digits = `${match[1] ?? ''}${fraction}`.replace(/^0+/, '')
  const exponent = Number(match[3] ?? 0) - fraction.length
  if (digits === '') return value === 0
  // Not by an expression: on inner zeros one would begin anew at each of them.
  let end = digits.length
  while (end > 0 && digits.charCodeAt(end - 1) === 0x30) end--
  const kept = digits.slice(0, end)
  const zeros = exponent + digits.length - kept.length
  // A safe integer has at most 16 digits, so a longer run cannot be one.
  return zeros >= 0 && kept.length + zeros <= 16 && Number(kept + '0'.repeat(zeros)) === Math.abs(value)
}

/** Index of the quote that closes the string that opens at `from`. */
function closingQuote (text: string, from: number): number {
  for (let i = from + 1; ; i++) {
    const c = text.charCodeAt(i)
    if (c === BACKSLASH) i++
    else if (c === 0x22) return i
  }
}

/** The pointer to what is being read: made only where somebody is told of it. */
function pointerOf (stack: readonly Level[]): string {
  return stack.map(({ keys, key, index }) => (keys === undefined ? `/${index}` : key === undefined ? '' : `/${pointerPart(key)}`)).join('')
}

function readString (token: string, stack: readonly Level[]): string {
  const value = token.includes('\\') ? JSON.parse(token) as string : token.slice(1, -1)
  if (LONE_SURROGATE.test(value)) refuse(pointerOf(stack), 'a lone surrogate is no character')
  return value
}

function enterKey (stack: readonly Level[], level: Level, key: string, text: string, after: number): void {
  level.key = key
  level.expectsKey = false
  if (level.keys?.has(key) === true) refuse(pointerOf(stack), 'the key appears twice')
  // What poisons prototypes in careless code is never data here.
  if (key === '__proto__' || (key === 'constructor' && /^\s*:\s*\{/.test(text.slice(after, after + 64)))) refuse(pointerOf(stack), 'the key is reserved')
  level.keys?.add(key)
}

function push (stack: Level[], isObject: boolean): void {
  if (stack.length === DEPTH_MAX) refuse(pointerOf(stack), `nested deeper than ${DEPTH_MAX} levels`)
  stack.push({ keys: isObject ? new Set() : undefined, key: undefined, index: 0, expectsKey: isObject })
}

function nextMember (level: Level | undefined): void {
  if (level === undefined) return
  if (level.keys !== undefined) level.expectsKey = true
  else level.index++
}

// The syntax is known to be good, so that every character that is not looked at is space, a colon or a letter of true, false or null.
function scan (text: string, hasEscapes: boolean): void {
  const stack: Level[] = []
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (c === 0x22) {
      const end = closingQuote(text, i)
      const level = stack.at(-1)
      if (level?.expectsKey === true) enterKey(stack, level, readString(text.slice(i, end + 1), stack), text, end + 1)
      else if (hasEscapes) readString(text.slice(i, end + 1), stack)
      i = end
    } else if (c === 0x7b || c === 0x5b) {
      push(stack, c === 0x7b)
    } else if (c === 0x7d || c === 0x5d) {
      stack.pop()
    } else if (c === 0x2c) {
      nextMember(stack.at(-1))
    } else if (c === 0x2d || (c >= 0x30 && c <= 0x39)) {
      NUMBER.lastIndex = i
      const number = NUMBER.exec(text)?.[0] ?? ''
      if (roundsIntoRange(number)) refuse(pointerOf(stack), 'the number cannot be held exactly')
      i += number.length - 1
    }
  }
}

/** The value of a body; undefined where there is none. */
export function parseJson (body: Buffer): unknown {
  if (body.length === 0) return undefined
  if (!isUtf8(body)) refuse('', 'not UTF-8')
  const text = body.toString('utf8')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    refuse('', 'not JSON')
  }
  // A lone surrogate in valid UTF-8 can only be an escape. (Asked of the text, V8 takes the question for free and asks it again at each string.)
  scan(text, body.includes(BACKSLASH))
  return value
}
