/**
 * Settings tables. Every setting of a daemon stands once in such a table; parsing, `--help`, docs/config.md and the
 * dashboard are made from it.
 *
 * ```ts
 * export const settings = defineSettings('pds', {
 *   port: { type: 'port', default: 2583, env: ['PDS_PORT'], flag: '--port', doc: 'TCP port to listen on.' },
 *   adminPassword: { type: 'string', secret: true, env: ['PDS_ADMIN_PASSWORD'], doc: 'Password of the admin API.' },
 * })
 * export type PdsSettings = Settings<typeof settings>
 * const given = readSettings(settings, process.argv.slice(2)) // { port: number, adminPassword: string | undefined }
 * ```
 *
 * A flag wins over the environment, the environment over an env file, that over the default. An empty environment
 * variable counts as not set, as in the env files people already have.
 */
import { readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'
import { unhex } from '@millisky/core/bytes'

interface Common {
  /** Environment variables, the preferred one first; the first that is set counts. */
  readonly env?: readonly string[]
  /** Long flag with its dashes; several for aliases, the preferred one first. */
  readonly flag?: string | readonly string[]
  /** One or two sentences for operators. */
  readonly doc: string
  /** Heading under which the documentation lists it. */
  readonly section?: string
  /** Never shown: not in errors, not in logs, not in documentation. */
  readonly secret?: boolean
  /** Must be given: there is no default and no meaning in its absence. */
  readonly required?: boolean
}

/** Kinds of values: what is written → what the program gets. */
interface Kinds {
  string: string
  /** A whole number, optionally within `min` and `max`. */
  int: number
  /** A number that may have a fraction. */
  number: number
  /** 0 (any free one) to 65535. */
  port: number
  /** true, false, 1, 0, yes, no, on, off; as a flag also alone, or as `--no-…`. */
  bool: boolean
  /** `500ms`, `90s`, `5m`, `72h`, `1h30m`, `7d`; a bare number is in `unit` (milliseconds unless told) → milliseconds. */
  duration: number
  /** `512KB` = 512,000; `5MiB`, `5M` = 5 × 1024 × 1024; a bare number is bytes → bytes. */
  bytes: number
  /** An absolute URL, as written; `schemes` limits it. */
  url: string
  /** Separated by commas or white space; as a flag also repeated. */
  list: readonly string[]
  /** An even number of hex digits, `length` bytes if told. */
  hex: Uint8Array
  /** A path, as written. */
  path: string
}

type Plain = {
  [K in keyof Kinds]: Common & { readonly type: K; readonly default?: Kinds[K] } & (K extends 'int' | 'number'
      ? { readonly min?: number; readonly max?: number }
      : K extends 'hex'
        ? { readonly length?: number }
        : K extends 'duration'
          ? { readonly unit?: 'ms' | 's' }
          : K extends 'url'
            ? { readonly schemes?: readonly string[] }
            : unknown)
}[keyof Kinds]

/** One of some words. */
interface Choice extends Common {
  readonly type: 'enum'
  readonly values: readonly string[]
  readonly default?: string
}

export type Setting = Plain | Choice

/** The whole table of one daemon. */
export interface SettingsTable<T extends Readonly<Record<string, Setting>> = Readonly<Record<string, Setting>>> {
  /** Name of the daemon, as in `millisky <name>`. */
  readonly name: string
  readonly settings: T
  /** Environment variables that other software of its kind reads and that mean nothing here: accepted in silence. */
  readonly ignored: readonly string[]
}

type ValueOf<S> = S extends { type: 'enum'; values: readonly (infer V)[] }
  ? V
  : S extends { type: infer K extends keyof Kinds }
    ? Kinds[K]
    : never

/** What {@link readSettings} gives for a table. */
export type Settings<T extends SettingsTable> = {
  readonly [K in keyof T['settings']]: T['settings'][K] extends { default: unknown } | { required: true }
    ? ValueOf<T['settings'][K]>
    : ValueOf<T['settings'][K]> | undefined
}

/** Names the settings of a daemon. `ignored` are environment variables to accept and not to use. */
export function defineSettings<const T extends Readonly<Record<string, Setting>>>(
  name: string,
  settings: T,
  { ignored = [] }: { ignored?: readonly string[] } = {},
): SettingsTable<T> {
  const seen = new Set<string>()
  for (const [key, setting] of Object.entries<Setting>(settings)) {
    for (const label of [...(setting.env ?? []), ...flagsOf(setting)]) {
      if (seen.has(label)) throw new Error(`${label} of ${key} is the name of another setting too`)
      seen.add(label)
    }
  }
  return { name, settings, ignored }
}

/** All that is wrong with what was given, one line each. For people; holds no secret. */
export class SettingsError extends Error {
  readonly problems: readonly string[]

  constructor(name: string, problems: readonly string[]) {
    super(
      `${name}: ${problems.length === 1 ? 'a setting is' : `${problems.length} settings are`} not right\n${problems.map(problem => `  ${problem}`).join('\n')}`,
    )
    this.name = 'SettingsError'
    this.problems = problems
  }
}

type Env = Readonly<Record<string, string | undefined>>

/** Where values come from besides the table's defaults. */
export interface Sources {
  /** Instead of the environment of the process. */
  readonly env?: Env
  /** A file of `NAME=value` lines, read for what the environment does not set. */
  readonly envFile?: string
}

/**
 * Reads the settings from flags and environment.
 *
 * @param argv - Flags only: the words after the command. `--env-file PATH` is understood for every table.
 * @throws SettingsError with every problem at once.
 */
export function readSettings<T extends SettingsTable>(
  table: T,
  argv: readonly string[] = [],
  sources: Sources = {},
): Settings<T> {
  const problems: string[] = []
  const flags = readFlags(table, argv, problems)
  const envFile = flags.envFile ?? sources.envFile
  let env = sources.env ?? process.env
  if (envFile !== undefined) {
    try {
      env = { ...parseEnv(readFileSync(envFile, 'utf8')), ...withoutEmpty(env) }
    } catch (error) {
      problems.push(`--env-file ${envFile}: cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`)
    }
  }
  const values: Record<string, unknown> = {}
  for (const [key, setting] of Object.entries(table.settings)) {
    const flagged = flags.values.get(key)
    const name = flagged ? flagged.flag : setting.env?.find(name => env[name])
    const text = flagged ? flagged.text : name === undefined ? undefined : env[name]?.trim()
    if (text === undefined || name === undefined) {
      if (setting.required) problems.push(`${nameOf(key, setting)}: is required, ${expected(setting)}`)
      values[key] = setting.default
      continue
    }
    const parsed = parse(setting, text)
    if (parsed === undefined) {
      problems.push(`${name}: ${setting.secret ? '(secret)' : JSON.stringify(text)} is not ${expected(setting)}`)
    }
    values[key] = parsed
  }
  if (problems.length > 0) throw new SettingsError(table.name, problems)
  return values as Settings<T>
}

/**
 * Environment variables with a prefix of the table's own variables that no setting reads: likely typing errors.
 *
 * @param prefixes - Such as `['PDS_']`.
 */
export function unknownVariables(table: SettingsTable, prefixes: readonly string[], env: Env = process.env): string[] {
  const known = new Set([...table.ignored, ...Object.values(table.settings).flatMap(setting => setting.env ?? [])])
  return Object.keys(env)
    .filter(name => prefixes.some(prefix => name.startsWith(prefix)) && !known.has(name))
    .sort()
}

/** The values with secrets hidden, for a log line or the dashboard. */
export function shownSettings<T extends SettingsTable>(table: T, values: Settings<T>): Record<string, string> {
  const shown: Record<string, string> = {}
  for (const [key, setting] of Object.entries<Setting>(table.settings)) {
    const value: unknown = values[key as keyof Settings<T>]
    if (value === undefined) continue
    shown[key] = setting.secret ? '(secret)' : written(setting, value)
  }
  return shown
}

function flagsOf(setting: Setting): readonly string[] {
  return setting.flag === undefined ? [] : typeof setting.flag === 'string' ? [setting.flag] : setting.flag
}

function nameOf(key: string, setting: Setting): string {
  return [setting.env?.[0], flagsOf(setting)[0]].filter(name => name !== undefined).join(' or ') || key
}

function withoutEmpty(env: Env): Env {
  return Object.fromEntries(Object.entries(env).filter(([, value]) => value))
}

interface Flags {
  readonly values: Map<string, { flag: string; text: string }>
  envFile: string | undefined
}

function readFlags(table: SettingsTable, argv: readonly string[], problems: string[]): Flags {
  const flags: Flags = { values: new Map(), envFile: undefined }
  const byFlag = new Map<string, [string, Setting]>()
  for (const [key, setting] of Object.entries(table.settings)) {
    for (const flag of flagsOf(setting)) byFlag.set(flag, [key, setting])
  }
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i]!
    const equals = word.indexOf('=')
    const flag = equals < 0 ? word : word.slice(0, equals)
    let text = equals < 0 ? undefined : word.slice(equals + 1)
    const [key, setting] = byFlag.get(flag) ?? []
    if (key === undefined || setting === undefined) {
      const negated = byFlag.get(flag.replace(/^--no-/, '--'))
      if (flag.startsWith('--no-') && negated?.[1].type === 'bool' && text === undefined) {
        flags.values.set(negated[0], { flag, text: 'false' })
      } else if (flag === '--env-file') flags.envFile = text ?? argv[++i]
      else problems.push(`${flag}: is not a setting of ${table.name}${suggestion(flag, [...byFlag.keys()])}`)
      continue
    }
    if (text === undefined && setting.type === 'bool') text = 'true'
    if (text === undefined) text = argv[++i]
    if (text === undefined) {
      problems.push(`${flag}: needs a value, ${expected(setting)}`)
      continue
    }
    const before = setting.type === 'list' ? flags.values.get(key) : undefined
    flags.values.set(key, { flag, text: before ? `${before.text},${text}` : text })
  }
  return flags
}

/** A flag that shares most of its beginning or its words. */
function suggestion(flag: string, flags: readonly string[]): string {
  const close = flags.find(other => distance(flag, other) <= 2) ?? flags.find(other => other.startsWith(flag))
  return close && flag.length > 3 ? `; did you mean ${close}?` : ''
}

/** Letters to add, drop or change to get from one word to the other. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(change, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[b.length]!
}

const TRUE = ['true', '1', 'yes', 'on']
const FALSE = ['false', '0', 'no', 'off']

/** The value, or undefined if the text is not one. */
function parse(setting: Setting, text: string): unknown {
  switch (setting.type) {
    case 'string':
    case 'path':
      return text
    case 'int':
      return /^[+-]?\d+$/.test(text) ? within(setting, Number(text)) : undefined
    case 'number':
      return /^[+-]?(\d+\.?\d*|\.\d+)$/.test(text) ? within(setting, Number(text)) : undefined
    case 'port':
      return /^\d{1,5}$/.test(text) && Number(text) <= 65535 ? Number(text) : undefined
    case 'bool': {
      const word = text.toLowerCase()
      return TRUE.includes(word) ? true : FALSE.includes(word) ? false : undefined
    }
    case 'duration':
      return parseDuration(text, setting.unit)
    case 'bytes':
      return parseBytes(text)
    case 'url':
      return URL.canParse(text) && (setting.schemes?.includes(new URL(text).protocol.slice(0, -1)) ?? true)
        ? text
        : undefined
    case 'list':
      // A passphrase has spaces, and its words alone are to open nothing.
      return (setting.secret ? text.split(',').map(item => item.trim()) : text.split(/[\s,]+/)).filter(Boolean)
    case 'hex':
      return /^([0-9a-fA-F]{2})+$/.test(text) && (setting.length === undefined || text.length === 2 * setting.length)
        ? unhex(text.toLowerCase())
        : undefined
    case 'enum':
      return setting.values.includes(text) ? text : undefined
  }
}

function within({ min, max }: { min?: number; max?: number }, value: number): number | undefined {
  return Number.isFinite(value) && value >= (min ?? -Infinity) && value <= (max ?? Infinity) ? value : undefined
}

const DURATION_MS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
}

/** Milliseconds of `1h30m`, `1.5h`, `300ms`, `7d`; of a bare number in `unit`. Undefined if it is none. */
export function parseDuration(text: string, unit: 'ms' | 's' = 'ms'): number | undefined {
  if (/^\d+(\.\d+)?$/.test(text)) return Math.round(Number(text) * DURATION_MS[unit]!)
  if (!/^(\d+(\.\d+)?(ms|s|m|h|d|w))+$/.test(text)) return undefined
  let total = 0
  for (const [, amount, name] of text.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d|w)/g)) {
    total += Number(amount) * DURATION_MS[name!]!
  }
  return Math.round(total)
}

/** Bytes of `5242880`, `512KB` (thousands), `5MiB` or `5M` (powers of 1024). Undefined if it is none. */
export function parseBytes(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?b)?|b)?$/i.exec(text)
  if (!match) return undefined
  const power = match[2] ? 'kmgt'.indexOf(match[2].toLowerCase()) + 1 : 0
  const base = match[3]?.toLowerCase() === 'b' ? 1000 : 1024
  return Math.round(Number(match[1]) * base ** power)
}

/** What a value has to look like, for a sentence that ends with it. */
function expected(setting: Setting): string {
  switch (setting.type) {
    case 'string':
      return 'text'
    case 'path':
      return 'a path'
    case 'int':
      return `a whole number${range(setting)}`
    case 'number':
      return `a number${range(setting)}`
    case 'port':
      return 'a port from 0 to 65535'
    case 'bool':
      return 'true or false'
    case 'duration':
      return `a duration such as 90s, 5m, 72h${setting.unit === 's' ? ' or a number of seconds' : ' or a number of milliseconds'}`
    case 'bytes':
      return 'a size such as 512KB, 5MiB or a number of bytes'
    case 'url':
      return setting.schemes ? `a URL (${setting.schemes.map(scheme => `${scheme}://`).join(', ')})` : 'a URL'
    case 'list':
      return 'a list separated by commas'
    case 'hex':
      return setting.length ? `${2 * setting.length} hex digits` : 'an even number of hex digits'
    case 'enum':
      return `one of ${setting.values.join(', ')}`
  }
}

function range({ min, max }: { min?: number; max?: number }): string {
  if (min !== undefined && max !== undefined) return ` from ${min} to ${max}`
  if (min !== undefined) return ` of at least ${min}`
  return max === undefined ? '' : ` of at most ${max}`
}

/** A value as one would write it. */
function written(setting: Setting, value: unknown): string {
  if (setting.type === 'duration') return formatDuration(value as number)
  if (setting.type === 'bytes') return formatBytes(value as number)
  if (setting.type === 'list') return (value as readonly string[]).join(',')
  if (setting.type === 'hex') return Buffer.from(value as Uint8Array).toString('hex')
  return String(value)
}

function formatDuration(ms: number): string {
  for (const name of ['d', 'h', 'm', 's'] as const) {
    const size = DURATION_MS[name]!
    if (ms >= size && ms % size === 0) return `${ms / size}${name}`
  }
  return `${ms}ms`
}

function formatBytes(bytes: number): string {
  for (const [name, size] of [
    ['GiB', 2 ** 30],
    ['MiB', 2 ** 20],
    ['KiB', 2 ** 10],
    ['MB', 1e6],
    ['KB', 1e3],
  ] as const) {
    if (bytes >= size && bytes % size === 0) return `${bytes / size}${name}`
  }
  return String(bytes)
}

/** Settings in the order of the table, by section. */
function sections(table: SettingsTable): Map<string, [string, Setting][]> {
  const found = new Map<string, [string, Setting][]>()
  for (const entry of Object.entries(table.settings)) {
    const section = entry[1].section ?? 'General'
    found.set(section, [...(found.get(section) ?? []), entry])
  }
  return found
}

function defaultText(setting: Setting): string {
  if (setting.required) return 'required'
  if (setting.default === undefined || setting.secret) return ''
  return written(setting, setting.default)
}

/** The flags and variables for a terminal of 100 columns. */
export function settingsHelp(table: SettingsTable): string {
  const lines: string[] = []
  for (const [section, entries] of sections(table)) {
    lines.push(`${section}:`)
    for (const [, setting] of entries) {
      const flag = flagsOf(setting)[0]
      const value =
        setting.type === 'bool' ? '' : setting.type === 'enum' ? ` ${setting.values.join('|')}` : ` <${setting.type}>`
      lines.push(`  ${[flag && flag + value, setting.env?.[0]].filter(Boolean).join('   ')}`)
      const fallback = defaultText(setting)
      lines.push(...wrap(setting.doc + (fallback && ` [${fallback}]`), 92).map(line => `        ${line}`))
    }
    lines.push('')
  }
  return lines.join('\n')
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + word.length + 1 > width) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}

/** The table for docs/config.md. */
export function settingsMarkdown(table: SettingsTable): string {
  const cell = (text: string) => text.replaceAll('|', '\\|')
  const code = (names: readonly string[]) => names.map(name => `\`${name}\``).join('<br>')
  const lines: string[] = []
  for (const [section, entries] of sections(table)) {
    lines.push(`### ${section}`, '', '| Variable | Flag | Value | Default | |', '|---|---|---|---|---|')
    for (const [, setting] of entries) {
      const fallback = defaultText(setting)
      const shown = fallback === '' || fallback === 'required' ? fallback : `\`${fallback}\``
      const kind = setting.secret ? `${expected(setting)} (secret)` : expected(setting)
      lines.push(
        `| ${code(setting.env ?? [])} | ${code(flagsOf(setting))} | ${cell(kind)} | ${cell(shown)} | ${cell(setting.doc)} |`,
      )
    }
    lines.push('')
  }
  return lines.join('\n')
}
