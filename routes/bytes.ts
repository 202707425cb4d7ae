// SPDX-License-Identifier: BSD-3-Clause
//
// What is said of octets in header fields, for the routes that read and write them.
import { IncomingMessage } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { ServiceError } from '../src/errors.js'
import type { Reading } from '../src/service/memory.js'
import type { Digest } from '../src/service/upload.js'

export function describeBytes (reply: FastifyReply, { granularity, persistence, length }: Reading): FastifyReply {
  return reply.headers({ 'content-type': 'application/octet-stream', 'content-length': length, 'pmemset-granularity': granularity, 'pmemset-persistence': persistence })
}

/** At once where it can be: a promise on the way of each small read would be felt. */
export function sendBytes (reply: FastifyReply, reading: Reading | Promise<Reading>): FastifyReply | Promise<FastifyReply> {
  if (reading instanceof Promise) return reading.then((one) => sendBytes(reply, one))
  const { bytes } = reading
  describeBytes(reply, reading)
  return Buffer.isBuffer(bytes) ? reply.send(bytes) : reply.sendDownload(bytes)
}

/** Whether a body comes from a socket: an injected one is made of the injector's own buffers. */
export function isReceived (request: FastifyRequest): boolean {
  return request.raw instanceof IncomingMessage
}

export function contentLength (request: FastifyRequest): number | undefined {
  const header = request.headers['content-length']
  // Node has refused what is no number. What is no exact one is longer than any map all the same. Without one and without chunks, the body is empty.
  if (header !== undefined) return Math.min(Number(header), Number.MAX_SAFE_INTEGER)
  return request.headers['transfer-encoding'] === undefined ? 0 : undefined
}

export function refuseHeader (name: string, reason: string): ServiceError {
  return new ServiceError('PARAMETER_INVALID', 'A header field does not have the form that it must have.', { errors: [{ in: 'header', name, reason }] })
}

const ALGORITHMS: Partial<Record<string, { algorithm: Digest['algorithm'], size: number }>> = { 'sha-256': { algorithm: 'sha256', size: 32 }, 'sha-512': { algorithm: 'sha512', size: 64 } }

// A dictionary of byte sequences (RFC 8941), each with parameters that mean nothing here.
const MEMBER = /^ *([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?: *;[^,"]*)?[ \t]*$/

/** Of Content-Digest (RFC 9530): what is to be checked. */
export function digestsOf (request: FastifyRequest): Digest[] {
  const header = request.headers['content-digest']
  if (header === undefined) return []
  const byName = new Map<string, Digest>()
  for (const member of String(header).split(',')) {
    const [, name = '', base64 = ''] = MEMBER.exec(member) ?? []
    if (name === '') throw refuseHeader('content-digest', 'must be digests such as sha-256=:base64:')
    const known = ALGORITHMS[name]
    if (known === undefined) continue
    const value = Buffer.from(base64, 'base64')
    if (value.length !== known.size) throw refuseHeader('content-digest', `${name} must have ${known.size} bytes`)
    byName.set(name, { algorithm: known.algorithm, value })
  }
  return [...byName.values()]
}
