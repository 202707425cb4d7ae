// SPDX-License-Identifier: BSD-3-Clause
//
// Connections: how many, how long they may be idle, and that a body which is under way keeps moving. Node's requestTimeout is off, because it cuts long
// uploads that are perfectly alive; a rule of progress takes its place.
import fp from 'fastify-plugin'
import type { IncomingMessage, ServerOptions } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyInstance } from 'fastify'
import type { Log } from '../log.js'
import { HEADERS_BYTES_MAX } from './problems.js'
import { isBehindRefusal, isUnread, waitsForContinue } from './uploads.js'

/** All of Node's timeouts and sizes, for the constructor of Fastify. */
export const SERVER = {
  // The door answers a missing Host; Node's own answer is no problem document.
  http: {
    requireHostHeader: false,
    // Long enough for a slow network, short enough that half-open heads cost little.
    headersTimeout: 15_000,
    // How often Node looks for heads that are late.
    connectionsCheckingInterval: 5000,
    maxHeaderSize: HEADERS_BYTES_MAX
  } satisfies ServerOptions,
  // Longer than the idle time of common proxies and connection pools, so that the client closes first and no request meets a closing socket.
  keepAliveTimeout: 72_000,
  // Off: an idle socket is keepAliveTimeout's, a stalled body the rule of progress's.
  connectionTimeout: 0,
  // Off: see above.
  requestTimeout: 0
} as const

export interface ConnectionsOptions {
  connectionsMax: number
  log: Log
  /** Tests shorten these. */
  progressBytes?: number
  progressMs?: number
}

const PROGRESS_BYTES = 64 * 1024
const PROGRESS_MS = 30_000

interface Watch {
  /** The request whose body is being read. */
  upload: IncomingMessage | undefined
  /** Bytes moved, and when that was first seen; at 0: nothing is under way. */
  bytes: number
  at: number
}

// In flight is a body that the client has still to send and the service is waiting for, or a reply that the client does not take.
function isClientsTurn (socket: Socket, { upload }: Watch): boolean {
  if (socket.writableLength > 0) return true
  return upload !== undefined && isUnread(upload) && !waitsForContinue(upload) && upload.readableLength === 0
}

/** Node keeps to itself how much of a write is under way; without it a write of mebibytes would seem to stand still to its end. */
interface Handle {
  bytesWritten: number
  writeQueueSize: number
}

function bytesMoved (socket: Socket): number {
  const handle = (socket as Socket & { _handle?: Partial<Handle> | null })._handle
  const written = handle?.bytesWritten === undefined || handle.writeQueueSize === undefined ? socket.bytesWritten - socket.writableLength : handle.bytesWritten - handle.writeQueueSize
  return socket.bytesRead + written
}

async function connections (app: FastifyInstance, options: ConnectionsOptions): Promise<void> {
  const { connectionsMax, log, progressBytes = PROGRESS_BYTES, progressMs = PROGRESS_MS } = options
  const watches = new Map<Socket, Watch>()
  app.server.maxConnections = connectionsMax
  app.server.on('drop', () => { log('warn', 'a connection was dropped: the limit is reached', { limit: connectionsMax }) })
  app.server.on('connection', (socket: Socket) => {
    watches.set(socket, { upload: undefined, bytes: 0, at: 0 })
    socket.on('close', () => watches.delete(socket))
  })
  app.addHook('onRequest', ({ raw }, reply, done) => {
    if (isBehindRefusal(raw)) {
      reply.hijack()
      return
    }
    if (isUnread(raw)) {
      const watch = watches.get(raw.socket)
      if (watch !== undefined) watch.upload = raw
    }
    done()
  })

  const check = (): void => {
    const now = performance.now()
    for (const [socket, watch] of watches) {
      const bytes = bytesMoved(socket)
      if (!isClientsTurn(socket, watch)) {
        watch.at = 0
      } else if (watch.at === 0 || bytes - watch.bytes >= progressBytes) {
        watch.bytes = bytes
        watch.at = now
      } else if (now - watch.at >= progressMs) {
        log('warn', 'a connection was cut: its body stands still', { bytesPerWindow: bytes - watch.bytes })
        socket.destroy()
      }
    }
  }
  // Node's own closing of idle connections passes over those that have not sent anything yet, and would wait for them.
  app.addHook('preClose', (done) => {
    for (const socket of watches.keys()) {
      if (socket.bytesRead === 0) socket.destroy()
    }
    done()
  })
  const timer = setInterval(check, Math.max(progressMs / 6, 10))
  timer.unref()
  app.addHook('onClose', (_instance, done) => {
    clearInterval(timer)
    done()
  })
}

export default fp(connections, { name: 'connections', dependencies: ['uploads'], fastify: '5.x' })
