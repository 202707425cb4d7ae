// SPDX-License-Identifier: BSD-3-Clause
//
// The registry: every row that is measured over HTTP.
import { H8 } from './batches.js'
import { H4, H5 } from './bulk.js'
import { H9 } from './delay.js'
import { H1 } from './lookups.js'
import type { Row } from './measure.js'
import { H2, H3 } from './reads.js'
import { S1, S2 } from './starts.js'
import { H6, H7 } from './writes.js'

export const ROWS: readonly Row[] = [H1, H2, H3, H4, H5, H6, H7, H8, H9, S1, S2]
