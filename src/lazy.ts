// SPDX-License-Identifier: BSD-3-Clause
//
// What is made when it is first needed. Checks and serialisers of JSON are programs that are made from schemas, for each route: all of them took a
// quarter of a start, and a sixth of the memory at rest, for requests that may never come.

/** The value, made at the first call. */
export function lazy<T extends object> (make: () => T): () => T {
  let made: T | undefined
  return () => (made ??= make())
}
