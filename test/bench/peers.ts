// SPDX-License-Identifier: BSD-3-Clause
//
// The peers, each started as its own documentation recommends for the same promise. Those of the distribution may be missing; then a sentence says so.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { installed, type Bench, type Keep } from './measure.js'
import { HERE, program, start, type Server } from './server.js'

const node = (name: string): string[] => [process.execPath, join(HERE, 'peer', `${name}.js`)]
const portOnly = (port: number): Record<string, string> => ({ PORT: String(port) })

/** A bare Fastify route that returns one object. */
export async function bare (keep: Keep, path: string, answer: string): Promise<Server> {
  return keep.server(await start({ command: () => node('bare'), env: (port) => ({ ...portOnly(port), ANSWER: answer }), path }))
}

/** node:http that sends what lies in one heap Buffer, read from a file: GET /offset/length; what is put it discards. */
export async function heap (keep: Keep, file: string): Promise<Server> {
  return keep.server(await start({ command: () => node('heap'), env: (port) => ({ ...portOnly(port), FILE: file }), path: '/0/1' }))
}

/** @fastify/static over a directory. */
export async function files (keep: Keep, dir: string): Promise<Server> {
  return keep.server(await start({ command: () => node('files'), env: (port) => ({ ...portOnly(port), DIR: dir }) }))
}

/** lmdb behind Fastify: GET and PUT /keys/n; a put answers when it is on the disk. */
export async function store (keep: Keep, dir: string): Promise<Server> {
  return keep.server(await start({ command: () => node('store'), env: (port) => ({ ...portOnly(port), DIR: dir }) }))
}

/** The send() and recv() loops in C over one file. */
export async function floor (keep: Keep, file: string): Promise<Server> {
  return keep.server(await start({ command: (port) => [program('floor'), String(port), file] }))
}

type Maybe = Server | string

const missing = (command: string, name: string): string | undefined => (installed(command) ? undefined : `${name} is not installed`)

/** nginx over a directory: sendfile, ranges, WebDAV's PUT. One process, as all here have one core. */
export async function nginx (bench: Bench, keep: Keep, dir: string): Promise<Maybe> {
  const why = missing('nginx', 'nginx')
  if (why !== undefined) return why
  const own = keep.directory(bench.disk)
  const config = join(own, 'nginx.conf')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${name === 'client_body' ? dir : own}/${name};`).join(' ')
  return keep.server(await start({
    command: (port) => {
      writeFileSync(config, `daemon off; master_process off; worker_processes 1; pid ${own}/pid; error_log stderr;
        events { worker_connections 256; }
        http {
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; client_max_body_size 0; ${temporary}
          server { listen 127.0.0.1:${port}; root ${dir}; dav_methods PUT; }
        }`)
      return ['nginx', '-p', own, '-c', config]
    }
  }))
}

/** Redis; `isDurable`: a reply says that the append-only file is on the disk. */
export async function redis (bench: Bench, keep: Keep, isDurable: boolean): Promise<Maybe> {
  const why = missing('redis-server', 'Redis')
  if (why !== undefined) return why
  const dir = keep.directory(bench.disk)
  return keep.server(await start({
    command: (port) => ['redis-server', '--port', String(port), '--bind', '127.0.0.1', '--dir', dir, '--save', '',
      '--appendonly', isDurable ? 'yes' : 'no', '--appendfsync', 'always', '--daemonize', 'no']
  }))
}

/** webdis before a Redis. */
export async function webdis (bench: Bench, keep: Keep, behind: Server): Promise<Maybe> {
  const why = missing('webdis', 'webdis')
  if (why !== undefined) return why
  const own = keep.directory(bench.disk)
  const config = join(own, 'webdis.json')
  return keep.server(await start({
    command: (port) => {
      writeFileSync(config, JSON.stringify({
        redis_host: '127.0.0.1', redis_port: behind.port, http_host: '127.0.0.1', http_port: port, threads: 1, daemonize: false, verbosity: 0, logfile: join(own, 'log')
      }))
      return ['webdis', config]
    }
  }))
}

/** etcd alone, whose writes are on the disk when they are answered; through the JSON gateway that it brings. */
export async function etcd (bench: Bench, keep: Keep): Promise<Maybe> {
  const why = missing('etcd', 'etcd')
  if (why !== undefined) return why
  const dir = keep.directory(bench.disk)
  return keep.server(await start({
    command: (port) => ['etcd', '--name', 'bench', '--data-dir', dir, '--log-level', 'error', '--listen-client-urls', `http://127.0.0.1:${port}`,
      '--advertise-client-urls', `http://127.0.0.1:${port}`, '--listen-peer-urls', 'http://127.0.0.1:0'],
    path: '/health'
  }))
}
