/** Logs and metrics. */
import pino, { type DestinationStream, type Logger } from 'pino'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export type { Logger }

export const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

const SECRET_FIELDS = [
  'accessJwt',
  'adminPassword',
  'authorization',
  'cookie',
  'dpop',
  'password',
  'privateKey',
  'refreshJwt',
  'secret',
  'token',
  'x-admin-token',
  'x-ratelimit-bypass',
]
const quoted = (field: string) => (field.includes('-') ? `["${field}"]` : field)
const REDACTED = SECRET_FIELDS.flatMap(field => {
  const name = quoted(field)
  const inside = name.startsWith('[') ? name : `.${name}`
  return [name, `*${inside}`, `*.*${inside}`]
})

/**
 * A logger that writes a JSON object per line. Fields that hold credentials are replaced wherever they stand, down to
 * two objects deep.
 *
 * @param destination - Standard output, unless told.
 */
export function createLog({
  level = 'info',
  name,
  destination,
}: {
  level?: LogLevel
  name: string
  destination?: DestinationStream
}): Logger {
  const options = {
    name,
    level,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }), bindings: ({ name }: pino.Bindings) => ({ name }) },
    redact: { paths: REDACTED, censor: '(secret)' },
  }
  return destination ? pino(options, destination) : pino(options)
}

/** A logger that says nothing, for tests. */
export const silentLog: Logger = pino({ level: 'silent' })

/**
 * The values a label may have.
 *
 * - a list: anything else is counted as `other`;
 * - a number: an open set, of which the first so many values are kept apart and the rest is counted as `other`;
 * - null: the code promises a small closed set (names of routes), nothing is checked.
 */
export type LabelValues = readonly string[] | number | null
export type Labels<L extends string> = Readonly<Record<L, LabelValues>>

export interface BoundedCounter<L extends string> {
  inc(labels: Readonly<Record<L, string>>, by?: number): void
}
export interface BoundedGauge<L extends string> {
  set(labels: Readonly<Record<L, string>>, value: number): void
  /** Forgets all values, for gauges that are read from scratch at each scrape. */
  reset(): void
}
export interface BoundedHistogram<L extends string> {
  observe(labels: Readonly<Record<L, string>>, value: number): void
}

/** Metrics whose labels cannot grow without bound, however many hosts or paths the outside invents. */
export interface Metrics {
  counter<L extends string = never>(name: string, help: string, labels?: Labels<L>): BoundedCounter<L>
  /** `collect` is called before each scrape. */
  gauge<L extends string = never>(
    name: string,
    help: string,
    options?: { labels?: Labels<L>; collect?: (gauge: BoundedGauge<L>) => void | Promise<void> },
  ): BoundedGauge<L>
  histogram<L extends string = never>(
    name: string,
    help: string,
    options: { labels?: Labels<L>; buckets: readonly number[] },
  ): BoundedHistogram<L>
  /** Everything, in the text format of Prometheus. */
  text(): Promise<string>
  readonly contentType: string
  readonly registry: Registry
}

/**
 * A registry of its own.
 *
 * @param process - Also CPU, memory, event loop and garbage collection of the process, under their usual names.
 */
export function createMetrics({ process = false }: { process?: boolean } = {}): Metrics {
  const registry = new Registry()
  if (process) collectDefaultMetrics({ register: registry })
  return {
    registry,
    contentType: registry.contentType,
    text: () => registry.metrics(),
    counter<L extends string>(name: string, help: string, labels?: Labels<L>): BoundedCounter<L> {
      const { names, fold } = folding(labels)
      const [label, ...others] = names
      // Counting is done for every event and reading rarely, so what prom-client does with labels waits for the reading.
      const pending = new Map<string, number>()
      const counter = new Counter({
        name,
        help,
        labelNames: names,
        registers: [registry],
        collect: () => {
          for (const [value, by] of pending) {
            counter.inc((label === undefined ? {} : { [label]: value }) as Record<L, string>, by)
          }
          pending.clear()
        },
      })
      if (others.length > 0) return { inc: (given, by) => counter.inc(fold(given), by) }
      return {
        inc: (given, by = 1) => {
          const value = label === undefined ? '' : fold(given)[label]
          pending.set(value, (pending.get(value) ?? 0) + by)
        },
      }
    },
    gauge<L extends string>(
      name: string,
      help: string,
      options: { labels?: Labels<L>; collect?: (gauge: BoundedGauge<L>) => void | Promise<void> } = {},
    ) {
      const { names, fold } = folding(options.labels)
      const gauge = new Gauge({
        name,
        help,
        labelNames: names,
        registers: [registry],
        ...(options.collect ? { collect: () => options.collect!(bounded) } : {}),
      })
      const bounded: BoundedGauge<L> = {
        set: (given, value) => gauge.set(fold(given), value),
        reset: () => gauge.reset(),
      }
      return bounded
    },
    histogram(name, help, { labels, buckets }) {
      const { names, fold } = folding(labels)
      const histogram = new Histogram({ name, help, labelNames: names, buckets: [...buckets], registers: [registry] })
      return { observe: (given, value) => histogram.observe(fold(given), value) }
    },
  }
}

/** Replaces label values outside their sets by `other`; gives back the same object if there is nothing to replace. */
function folding<L extends string>(labels: Labels<L> | undefined) {
  const entries = Object.entries<LabelValues>(labels ?? {}) as [L, LabelValues][]
  const known = new Map(entries.map(([name, values]) => [name, new Set(Array.isArray(values) ? values : [])]))
  const admits = (name: L, values: LabelValues, value: string): boolean => {
    if (values === null) return true
    const seen = known.get(name)!
    if (seen.has(value)) return true
    if (typeof values !== 'number' || seen.size >= values) return false
    seen.add(value)
    return true
  }
  const fold = (given: Readonly<Record<L, string>>): Record<L, string> => {
    let folded: Record<L, string> = given
    for (const [name, values] of entries) {
      if (admits(name, values, given[name])) continue
      if (folded === given) folded = { ...given }
      folded[name] = 'other'
    }
    return folded
  }
  return { names: entries.map(([name]) => name), fold }
}
