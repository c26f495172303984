/** How commands print what they were told: for people, or as JSON for programs. */

export interface PrintOptions {
  json?: boolean
}

/** Prints an object as JSON, or as lines of `name value`. */
export function print({ json }: PrintOptions, value: Record<string, unknown>): void {
  if (json) {
    process.stdout.write(`${JSON.stringify(value)}\n`)
    return
  }
  const shown = Object.entries(value).filter(([, one]) => one !== undefined)
  const width = Math.max(0, ...shown.map(([name]) => name.length))
  for (const [name, one] of shown) {
    process.stdout.write(`${name.padEnd(width)}  ${typeof one === 'object' ? JSON.stringify(one) : one}\n`)
  }
}

/** Prints rows as JSON lines, or as a table. */
export function printRows({ json }: PrintOptions, rows: Record<string, unknown>[]): void {
  if (json) {
    for (const row of rows) process.stdout.write(`${JSON.stringify(row)}\n`)
    return
  }
  const names = Object.keys(rows[0] ?? {})
  const widths = names.map(name => Math.max(name.length, ...rows.map(row => String(row[name] ?? '').length)))
  const line = (cells: string[]) =>
    `${cells
      .map((cell, i) => cell.padEnd(widths[i]!))
      .join('  ')
      .trimEnd()}\n`
  if (rows.length > 0) process.stdout.write(line(names))
  for (const row of rows) process.stdout.write(line(names.map(name => String(row[name] ?? ''))))
}
