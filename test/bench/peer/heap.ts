// SPDX-License-Identifier: BSD-3-Clause
//
// node:http with nothing around it. GET /offset/length sends that of a Buffer in the heap; PUT discards its body.
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'

/** libuv writes no more than 2 GiB in one call. */
const SLICE_BYTES_MAX = 1024 ** 3

function contentOf (file: string): Buffer {
  const fd = openSync(file, 'r')
  const bytes = Buffer.allocUnsafe(fstatSync(fd).size)
  for (let at = 0; at < bytes.length;) at += readSync(fd, bytes, at, Math.min(bytes.length - at, SLICE_BYTES_MAX), at)
  closeSync(fd)
  return bytes
}

const content = contentOf(process.env.FILE ?? '')

function sendSlices (response: ServerResponse, at: number, end: number): void {
  if (end - at <= SLICE_BYTES_MAX) response.end(content.subarray(at, end))
  else response.write(content.subarray(at, at + SLICE_BYTES_MAX), () => { sendSlices(response, at + SLICE_BYTES_MAX, end) })
}

const server = createServer((request, response) => {
  if (request.method === 'PUT') {
    request.on('end', () => { response.writeHead(200, { 'content-length': 0 }).end() }).resume()
    return
  }
  const [, offset, length] = (request.url ?? '').split('/')
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': Number(length) })
  sendSlices(response, Number(offset), Number(offset) + Number(length))
})
server.requestTimeout = 0
server.listen(Number(process.env.PORT), '127.0.0.1')
process.on('SIGTERM', () => process.exit())
