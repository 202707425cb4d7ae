// SPDX-License-Identifier: BSD-3-Clause
// Each row of npm run bench runs and sees its peers do the same work. No figure is looked at, so none can fail on a busy machine.
import t from 'tap'
import { newBench } from './bench/measure.js'
import { ROWS } from './bench/rows.js'

const bench = newBench({ pairs: 1, seconds: 0.05, processes: 1, isSmoke: true })

for (const row of ROWS) {
  t.test(`${row.name}: ${row.what}`, async (t) => {
    const lines = await row.measure(bench)
    t.ok(lines.length > 0, 'it has lines')
    for (const { what, figures, verdict, note } of lines) {
      if (verdict === 'no peer') t.pass(what, { skip: note ?? true })
      else t.ok(figures !== undefined && figures.count > 0 && [figures.median, figures.min, figures.max].every((n) => Number.isFinite(n) && n >= 0), `${what}: ${JSON.stringify(figures)}`)
    }
  })
}
