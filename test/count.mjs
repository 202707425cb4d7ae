// SPDX-License-Identifier: BSD-3-Clause
// What ctest and tap print, as test cases: the sums that the outermost test command shows stand on these two.

const program = () => ({ planned: 0, passed: 0, failed: 0, skips: [], lines: [] })

/** One more line of what a program prints: its cases are cmocka's TAP. */
function readLine (program, line) {
  program.lines.push(line)
  const plan = /^1\.\.(\d+)/.exec(line)
  const point = /^(not ok|ok) \d+(?: - )?(.*)$/.exec(line)
  if (plan !== null) program.planned += Number(plan[1])
  // cmocka writes a skip as "not ok 3 # SKIP name"; why, the test has printed before.
  else if (point !== null && /# SKIP/.test(point[2])) program.skips.push(`${point[2].replace(/^.*# SKIP */, '')}: ${program.lines.at(-2) ?? ''}`)
  else if (point !== null) program[point[1] === 'ok' ? 'passed' : 'failed']++
}

/** What a native program that runs by itself prints. */
export function readCmocka (text) {
  const one = program()
  for (const line of text.split('\n')) readLine(one, line)
  return one
}

/** What there is to count of a program: one that crashes leaves its cases short of its plan. */
export function countProgram ({ verdict, planned, passed, failed, skips, lines }) {
  if (verdict === 'Skipped') return { passed, failed, skips: [...skips, lines.at(-1) ?? 'it says no reason'] }
  if (planned === 0) return verdict === 'Passed' ? { passed: 1, failed, skips } : { passed, failed: 1, skips }
  const short = Math.max(0, planned - passed - failed - skips.length)
  return { passed, failed: Math.max(failed + short, verdict === 'Passed' ? 0 : 1), skips }
}

/** Each program's verdict is ctest's. */
export function readCtest (text) {
  const programs = new Map()
  const of = (number) => {
    if (!programs.has(number)) programs.set(number, program())
    return programs.get(number)
  }
  for (const line of text.split('\n')) {
    const said = /^(\d+): (.*)$/.exec(line)
    const verdict = /Test +#(\d+): (\S+) \.+ *(?:\*\*\*)?(Passed|Skipped|.*?)(?:Required regular expression.*)? +[\d.]+ sec/.exec(line)
    if (verdict !== null) Object.assign(of(verdict[1]), { name: verdict[2], verdict: verdict[3].trim() })
    else if (said !== null) readLine(of(said[1]), said[2])
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
