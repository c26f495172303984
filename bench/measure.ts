/**
 * Measuring: operations per CPU-second, taken from the process accounting so that a busy machine disturbs little, and
 * in alternating rounds so that what disturbs one case disturbs its rivals too.
 */
import { cpus } from 'node:os'
import { cryptoDriver } from '@millisky/core/crypto'

export interface Measured {
  name: string
  /** Median over the rounds. */
  opsPerCpuSecond: number
  low: number
  high: number
  /**
   * The first case's rate over this one's, the median of each round's own: what disturbs a whole round leaves it as
   * it is. Only known to {@link compare}.
   */
  ratio?: number
}

export interface Case {
  name: string
  /** One operation, or `count` of them; a promise is awaited. */
  fn: () => unknown
  /** Operations that one call of `fn` stands for; 1 if left out. */
  count?: number
}

export interface MeasureOptions {
  /** CPU-seconds per case over all rounds; 1 if left out. */
  seconds?: number
  rounds?: number
}

/** Measures one function. For a comparison use {@link compare}, which alternates. */
export async function measure(name: string, fn: () => unknown, options: MeasureOptions = {}): Promise<Measured> {
  const [measured] = await compare([{ name, fn }], options)
  return measured!
}

/** Measures several functions that do the same thing, in alternating rounds after a warm-up. */
export async function compare(
  cases: readonly Case[],
  { seconds = 1, rounds = 5 }: MeasureOptions = {},
): Promise<Measured[]> {
  const slice = (seconds / rounds) * 1e6
  const rates: number[][] = cases.map(() => [])
  for (let round = -1; round < rounds; round++) {
    for (const [i, { fn, count = 1 }] of cases.entries()) {
      const rate = await oneRound(fn, slice)
      if (round >= 0) rates[i]!.push(rate * count)
    }
  }
  return cases.map(({ name }, i) => {
    const sorted = rates[i]!.toSorted((a, b) => a - b)
    const ratio = median(rates[i]!.map((rate, round) => rates[0]![round]! / rate))
    return { name, opsPerCpuSecond: median(sorted), low: sorted[0]!, high: sorted.at(-1)!, ratio }
  })
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!
}

/** Calls per CPU-second, calling in batches that grow until the accounting can be read rarely. */
async function oneRound(fn: () => unknown, cpuMicros: number): Promise<number> {
  let batch = 1
  let calls = 0
  let spent = 0
  const start = process.cpuUsage()
  while (spent < cpuMicros) {
    for (let i = 0; i < batch; i++) {
      const result = fn()
      if (result instanceof Promise) await result
    }
    calls += batch
    const { user, system } = process.cpuUsage(start)
    spent = user + system
    if (spent < cpuMicros / 20) batch *= 2
  }
  return (calls / spent) * 1e6
}

/** Prints a table: rates, and each one's ratio to the first row. */
export function printTable(title: string, rows: readonly Measured[], unit = 'ops/CPU-s'): void {
  const width = Math.max(...rows.map(row => row.name.length))
  console.log(`\n${title}`)
  for (const row of rows) {
    const ratio = row.ratio ?? rows[0]!.opsPerCpuSecond / row.opsPerCpuSecond
    const spread = `[${short(row.low)}-${short(row.high)}]`
    const compared = row === rows[0] ? '' : `  ours is ${ratio.toFixed(2)}x`
    console.log(`  ${row.name.padEnd(width)}  ${short(row.opsPerCpuSecond).padStart(8)} ${unit} ${spread}${compared}`)
  }
}

/** What a result means nothing without. */
export function machine(): string {
  const [cpu] = cpus()
  return `${cpu?.model ?? 'unknown CPU'}, ${cpus().length} cores, Node ${process.version}, ${process.platform} ${process.arch}, K-256 by ${cryptoDriver}`
}

function short(n: number): string {
  if (n >= 1e6) return `${(n / 1e6).toFixed(2)}M`
  if (n >= 1e3) return `${(n / 1e3).toFixed(1)}k`
  return n.toFixed(1)
}
