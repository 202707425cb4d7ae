// SPDX-License-Identifier: BSD-3-Clause
//
// Bytes on their way out of a mapping: given to the socket slice by slice, as fast as it takes them and never read here. What goes wrong once the head is
// out breaks the connection off, and the log says what it was.
import fp from 'fastify-plugin'
import type { OutgoingHttpHeaders } from 'node:http'
import type { FastifyInstance, FastifyReply } from 'fastify'
import { ServiceError } from '../errors.js'
import type { Download } from '../service/download.js'

declare module 'fastify' {
  interface FastifyReply {
    /** Sends the head as it was set, and the bytes. Lets the map go at the first of the two ends: a reply that is queued behind another one gets no `close` when the socket goes. */
    sendDownload: (download: Download) => FastifyReply
  }
}

function sendDownload (this: FastifyReply, download: Download): FastifyReply {
  const { raw } = this
  const { socket } = this.request.raw
  this.hijack()
  if (socket.destroyed) {
    // The client went while the first slice was made ready: nothing will tell of its end any more.
    download.release()
    return this
  }
  let over = false
  const isOver = (): boolean => over
  const end = (): void => {
    over = true
    raw.off('close', end)
    socket.off('close', end)
    socket.off('error', refused)
    download.release()
  }
  // The kernel could not read what it was to send. Whether that was the client's to see or not, the mapping knows why.
  const refused = (error: NodeJS.ErrnoException): void => {
    if (error.code !== 'EFAULT') return
    try {
      download.check()
      this.sendProblem(new ServiceError('PMEMSET_E_IO_FAIL', 'The medium refused a load in the middle of a reply.'))
    } catch (reason) {
      this.sendProblem(reason as Error)
    }
  }
  raw.once('close', end)
  socket.once('close', end)
  socket.on('error', refused)
  raw.writeHead(this.statusCode, this.getHeaders() as OutgoingHttpHeaders)
  const send = async (): Promise<void> => {
    for (;;) {
      const bytes = await download.next()
      if (isOver()) return
      if (download.isLast) {
        raw.end(bytes)
        return
      }
      const taken = new Promise((resolve) => { raw.write(bytes, resolve) })
      download.prepare()
      await taken
      if (isOver()) return
      download.check()
    }
  }
  send().catch((error: unknown) => {
    if (!isOver()) this.sendProblem(error as Error)
  })
  return this
}

async function downloads (app: FastifyInstance): Promise<void> {
  app.decorateReply('sendDownload', sendDownload)
}

export default fp(downloads, { name: 'downloads', dependencies: ['problems'], fastify: '5.x' })
