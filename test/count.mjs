// SPDX-License-Identifier: BSD-3-Clause
// What ctest and tap print, as test cases: the sums that the outermost test command shows stand on these two.

/** Each program's verdict is ctest's; its cases are cmocka's TAP, which a program that crashes leaves short of its plan. */
export function readCtest (text) {
  const programs = new Map()
  const of = (number) => {
    if (!programs.has(number)) programs.set(number, { planned: 0, passed: 0, failed: 0, skips: [], lines: [] })
    return programs.get(number)
  }
  for (const line of text.split('\n')) {
    const said = /^(\d+): (.*)$/.exec(line)
    const verdict = /Test +#(\d+): (\S+) \.+ *(?:\*\*\*)?(Passed|Skipped|.*?)(?:Required regular expression.*)? +[\d.]+ sec/.exec(line)
    if (verdict !== null) {
      const program = of(verdict[1])
      program.name = verdict[2]
      program.verdict = verdict[3].trim()
    } else if (said !== null) {
      const program = of(said[1])
      program.lines.push(said[2])
      const plan = /^1\.\.(\d+)/.exec(said[2])
      const point = /^(not ok|ok) \d+(?: - )?(.*)$/.exec(said[2])
      if (plan !== null) program.planned += Number(plan[1])
      // cmocka writes a skip as "not ok 3 # SKIP name"; why, the test has printed before.
      else if (point !== null && /# SKIP/.test(point[2])) program.skips.push(`${point[2].replace(/^.*# SKIP */, '')}: ${program.lines.at(-2) ?? ''}`)
      else if (point !== null) program[point[1] === 'ok' ? 'passed' : 'failed']++
    }
  }
  return [...programs.values()]
}

/** The blocks of the files, each with its direct children counted. */
export function readTap (text) {
  const files = []
  let block = []
  let file = { passed: 0, failed: 0, skips: [], next: 1 }
  let diagnostic = ''
  for (const line of text.split('\n')) {
    block.push(line)
    const opens = /^( *)---$/.exec(line)
    if (diagnostic === '' && opens !== null) { diagnostic = `${opens[1]}...`; continue }
    if (diagnostic !== '') { if (line === diagnostic) diagnostic = ''; continue }
    const point = /^( {4})?(not )?ok (\d+)(?: - (.*?))?(?: # time=.*|(?: # )(SKIP|TODO)\b ?(.*))?$/.exec(line)
    if (point === null) continue
    const [, child, not, number, name = '', directive, reason = ''] = point
    if (child !== undefined) {
      // Only the next number counts: a line of the same look that a program printed does not.
      if (Number(number) !== file.next) continue
      file.next++
      if (directive !== undefined) file.skips.push(`${name}: ${directive === 'TODO' ? 'to be done' : reason || 'it says no reason'}`)
      else file[not === undefined ? 'passed' : 'failed']++
    } else {
      if (file.next === 1 && directive === 'SKIP') file.failed = 1 // no test in it
      if (not !== undefined && file.failed === 0) file.failed = 1
      files.push({ name, ...file, text: block.join('\n') })
      block = []
      file = { passed: 0, failed: 0, skips: [], next: 1 }
    }
  }
  return files
}
