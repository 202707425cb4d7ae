// SPDX-License-Identifier: BSD-3-Clause
//
// npm run token -- FILE SCOPE[,SCOPE …] [NOTE]: makes a token of 256 random bits, shows it once, and adds its digest to the token file.
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { loadTokens, digestOf, SCOPES, type Scope, type TokenRecord } from './plugins/tokens.js'

function fail (message: string): never {
  console.error(`${message}\nusage: npm run --silent token -- FILE SCOPE[,SCOPE ...] [NOTE]; scopes are ${SCOPES.join(', ')}`)
  process.exit(1)
}

function readRecords (file: string): TokenRecord[] {
  if (!existsSync(file)) return []
  loadTokens(file) // refuses what the service would refuse
  return (JSON.parse(readFileSync(file, 'utf8')) as { tokens: TokenRecord[] }).tokens
}

const [file, scopeList = '', note] = process.argv.slice(2)
const scopes = scopeList.split(',').filter((scope): scope is Scope => SCOPES.some((known) => known === scope))
if (file === undefined) fail('no file is named')
if (scopes.length === 0 || scopes.length !== scopeList.split(',').length) fail(`${JSON.stringify(scopeList)} is no list of scopes`)

const token = randomBytes(32).toString('base64url')
try {
  const tokens = [...readRecords(file), { sha256: digestOf(token), scopes: [...new Set(scopes)], ...(note === undefined ? {} : { note }) }]
  // In place at once, and never readable for others.
  writeFileSync(`${file}.new`, `${JSON.stringify({ tokens }, null, 2)}\n`, { mode: 0o600, flag: 'wx' })
  renameSync(`${file}.new`, file)
} catch (error) {
  fail((error as Error).message)
}
console.log(token)
