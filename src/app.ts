// SPDX-License-Identifier: BSD-3-Clause
//
// The application, as a map of what there is and in which order. It never listens and never exits; src/main.ts and the tests do.
import Fastify, { type FastifyInstance } from 'fastify'
import type { Config } from './config.js'
import type { Log } from './log.js'
import { Replies } from './metrics.js'
import connections, { SERVER, type ConnectionsOptions } from './plugins/connections.js'
import door from './plugins/door.js'
import downloads from './plugins/downloads.js'
import methods from './plugins/methods.js'
import metrics from './plugins/metrics.js'
import openapi from './plugins/openapi.js'
import problems, { createParserErrorHandler, createRouterErrorHandler, requestId } from './plugins/problems.js'
import repeats from './plugins/repeats.js'
import restoring from './plugins/restoring.js'
import serialisation from './plugins/serialisation.js'
import slow from './plugins/slow.js'
import tokens, { type Tokens } from './plugins/tokens.js'
import uploads from './plugins/uploads.js'
import validation, { parseQuery } from './plugins/validation.js'
import { COMPONENTS } from './schemas.js'
import type { Service } from './service/service.js'
import catalogRoutes from '../routes/catalog.js'
import contentRoutes from '../routes/content.js'
import failureRoutes from '../routes/failures.js'
import mapRoutes from '../routes/maps.js'
import memoryRoutes from '../routes/memory.js'
import operationRoutes from '../routes/operations.js'
import partRoutes from '../routes/parts.js'
import serviceRoutes from '../routes/service.js'
import setRoutes from '../routes/sets.js'
import volumeRoutes from '../routes/volumes.js'

export interface ShellOptions {
  config: Config
  log: Log
  version: string
  tokens?: Tokens | undefined
  /** Tests shorten the rule of progress. */
  progress?: Pick<ConnectionsOptions, 'progressBytes' | 'progressMs'>
}

// The longest path parameter is an id; what is longer is an attack or a mistake.
const PARAMETER_CHARS_MAX = 256

/** Everything about HTTP but the routes. */
export async function buildShell ({ config, log, version, tokens: known, progress }: ShellOptions): Promise<FastifyInstance> {
  const replies = new Replies()
  const app = Fastify({
    ...SERVER,
    logger: false,
    genReqId: requestId,
    frameworkErrors: createRouterErrorHandler(log),
    clientErrorHandler: createParserErrorHandler(log, replies),
    // STOPPING is ours to say, as a problem document.
    return503OnClosing: false,
    // A machine that is busy takes its time to load what a plugin needs, and that is no reason to give up.
    pluginTimeout: 0,
    routerOptions: { querystringParser: parseQuery, maxParamLength: PARAMETER_CHARS_MAX }
  })
  await app.register(problems, { log })
  await app.register(door, { allowedHosts: config.allowedHosts, isUnixSocket: config.socket !== undefined })
  await app.register(methods)
  await app.register(tokens, { tokens: known })
  await app.register(uploads, { bodyBytesMax: config.limits.bodyBytes, batchBytesMax: config.limits.batchBytes })
  await app.register(downloads)
  await app.register(connections, { connectionsMax: config.limits.connections, log, ...progress })
  await app.register(metrics, { replies })
  await app.register(slow, { slowMs: config.slowMs, log })
  await app.register(validation)
  await app.register(serialisation)
  await app.register(openapi, { version })
  return app
}

export interface AppOptions extends ShellOptions {
  service: Service
}

export async function buildApp ({ service, ...options }: AppOptions): Promise<FastifyInstance> {
  const app = await buildShell(options)
  for (const schema of COMPONENTS) app.addSchema(schema)
  await app.register(restoring, { check: () => { service.checkRestored() } })
  await app.register(repeats, { repeats: service.repeats })
  await app.register(serviceRoutes, { service })
  await app.register(catalogRoutes, { service })
  await app.register(volumeRoutes, { service })
  await app.register(setRoutes, { service })
  await app.register(partRoutes, { service })
  await app.register(failureRoutes, { service })
  await app.register(mapRoutes, { service })
  await app.register(memoryRoutes, { service })
  await app.register(contentRoutes, { service })
  await app.register(operationRoutes, { service })
  return app
}
