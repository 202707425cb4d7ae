// SPDX-License-Identifier: BSD-3-Clause
//
// npm run openapi: writes openapi/openapi.yaml from the routes. With --check it writes nothing and fails where the file is not what the routes say.
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { buildApp } from './app.js'
import { loadConfig } from './config.js'
import { silent } from './log.js'
import { Service } from './service/service.js'
import { VERSION } from './version.js'

const FILE = fileURLToPath(new URL('../../openapi/openapi.yaml', import.meta.url))

/** The document of this version. No engine is started: routes ask the service only when they are called, and nobody calls them. */
export async function document (): Promise<string> {
  const service = Object.create(Service.prototype) as Service
  const app = await buildApp({ config: loadConfig({}), log: silent, version: VERSION, service })
  await app.ready()
  const text = app.swagger({ yaml: true })
  await app.close()
  return text
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const text = await document()
  if (!process.argv.includes('--check')) {
    writeFileSync(FILE, text)
  } else if (readFileSync(FILE, 'utf8') !== text) {
    console.error('openapi/openapi.yaml is not what the routes say; run: npm run openapi')
    process.exitCode = 1
  }
}
