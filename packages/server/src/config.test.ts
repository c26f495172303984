import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  defineSettings,
  parseBytes,
  parseDuration,
  readSettings,
  SettingsError,
  settingsHelp,
  settingsMarkdown,
  shownSettings,
  unknownVariables,
} from './config.ts'

const table = defineSettings(
  'thing',
  {
    port: {
      type: 'port',
      default: 2583,
      env: ['THING_PORT', 'OLD_PORT'],
      flag: ['--port', '-p'],
      doc: 'Where to listen.',
    },
    password: { type: 'string', secret: true, env: ['THING_PASSWORD'], flag: '--password', doc: 'Opens doors.' },
    passwords: { type: 'list', secret: true, env: ['THING_PASSWORDS'], doc: 'Open doors.' },
    key: { type: 'hex', secret: true, length: 4, env: ['THING_KEY'], doc: 'A key.' },
    name: { type: 'string', required: true, env: ['THING_NAME'], doc: 'Its name.' },
    window: { type: 'duration', default: 72 * 3_600_000, env: ['THING_WINDOW'], flag: '--window', doc: 'How | long.' },
    wait: { type: 'duration', unit: 's', env: ['THING_WAIT'], doc: 'Seconds.' },
    size: { type: 'bytes', default: 5 * 1024 * 1024, env: ['THING_SIZE'], doc: 'How big.', section: 'Limits' },
    open: { type: 'bool', default: true, env: ['THING_OPEN'], flag: '--open', doc: 'Whether.' },
    hosts: { type: 'list', default: ['a', 'b'], env: ['THING_HOSTS'], flag: '--host', doc: 'Which.' },
    site: { type: 'url', schemes: ['http', 'https'], env: ['THING_SITE'], doc: 'Site.' },
    level: { type: 'enum', values: ['debug', 'info'], default: 'info', env: ['THING_LEVEL'], doc: 'Level.' },
    ratio: { type: 'number', min: 0, max: 1, env: ['THING_RATIO'], doc: 'Share.' },
    count: { type: 'int', min: 1, env: ['THING_COUNT'], doc: 'Count.' },
    data: { type: 'path', default: './data', env: ['THING_DATA'], doc: 'Folder.' },
  },
  { ignored: ['THING_LEGACY'] },
)
const named = { THING_NAME: 'x' }
const problemsOf = (argv: string[], env: Record<string, string>) => {
  try {
    readSettings(table, argv, { env })
  } catch (error) {
    assert.ok(error instanceof SettingsError)
    for (const problem of error.problems) assert.ok(error.message.includes(problem))
    return error.problems
  }
  return []
}

test('defaults, and undefined where there is none', () => {
  const given = readSettings(table, [], { env: named })
  // The types are those of the table: this compiles.
  const port: number = given.port
  const password: string | undefined = given.password
  const level: 'debug' | 'info' = given.level
  assert.equal(port, 2583)
  assert.equal(password, undefined)
  assert.equal(level, 'info')
  assert.deepEqual(given.hosts, ['a', 'b'])
  assert.equal(given.wait, undefined)
})

test('values of every kind', () => {
  const given = readSettings(table, [], {
    env: {
      ...named,
      THING_PORT: '0',
      THING_KEY: 'DEADbeef',
      THING_WINDOW: '1h30m',
      THING_WAIT: '20',
      THING_SIZE: '512KB',
      THING_OPEN: 'no',
      THING_HOSTS: 'one, two three,,',
      THING_SITE: 'https://example.com/x',
      THING_LEVEL: 'debug',
      THING_RATIO: '.5',
      THING_COUNT: ' 12 ',
    },
  })
  assert.equal(given.port, 0)
  assert.deepEqual(given.key, Uint8Array.of(0xde, 0xad, 0xbe, 0xef))
  assert.equal(given.window, 5_400_000)
  assert.equal(given.wait, 20_000)
  assert.equal(given.size, 512_000)
  assert.equal(given.open, false)
  assert.deepEqual(given.hosts, ['one', 'two', 'three'])
  assert.equal(given.site, 'https://example.com/x')
  assert.equal(given.level, 'debug')
  assert.equal(given.ratio, 0.5)
  assert.equal(given.count, 12)
})

test('durations', () => {
  const cases: [string, number | undefined][] = [
    ['72h', 259_200_000],
    ['5m', 300_000],
    ['300ms', 300],
    ['1.5h', 5_400_000],
    ['1h0m10s', 3_610_000],
    ['7d', 604_800_000],
    ['250', 250],
    ['0', 0],
    ['-5m', undefined],
    ['5 m', undefined],
    ['m', undefined],
    ['1y', undefined],
    ['', undefined],
  ]
  for (const [text, ms] of cases) assert.equal(parseDuration(text), ms, text)
})

test('sizes', () => {
  const cases: [string, number | undefined][] = [
    ['1', 1],
    ['5MiB', 5_242_880],
    ['5mb', 5_000_000],
    ['5M', 5_242_880],
    ['1.5 k', 1536],
    ['10B', 10],
    ['x', undefined],
    ['5 apples', undefined],
  ]
  for (const [text, bytes] of cases) assert.equal(parseBytes(text), bytes, text)
})

test('flags win over the environment, the first set variable over the next, empty ones do not count', () => {
  const env = { ...named, THING_PORT: '', OLD_PORT: '7', THING_WINDOW: '1h' }
  assert.equal(readSettings(table, [], { env }).port, 7)
  assert.equal(readSettings(table, [], { env: { ...env, THING_PORT: '8' } }).port, 8)
  const given = readSettings(table, ['--port', '9', '--window=2h', '--no-open', '--host', 'a', '--host=b,c'], { env })
  assert.equal(given.port, 9)
  assert.equal(given.window, 7_200_000)
  assert.equal(given.open, false)
  assert.deepEqual(given.hosts, ['a', 'b', 'c'])
  assert.equal(readSettings(table, ['--open'], { env: { ...env, THING_OPEN: 'false' } }).open, true)
})

test('everything that is wrong is said at once, and no secret is', () => {
  const problems = problemsOf(['--prot', '1', '--window', 'soon', '--password'], {
    THING_PORT: '99999',
    THING_KEY: 'hunter2',
    THING_OPEN: 'maybe',
    THING_LEVEL: 'loud',
    THING_RATIO: '2',
    THING_SITE: 'ftp://example.com',
  })
  const text = problems.join('\n')
  assert.match(text, /--prot: is not a setting of thing; did you mean --port\?/)
  assert.match(text, /--password: needs a value, text/)
  assert.match(text, /THING_PORT: "99999" is not a port from 0 to 65535/)
  assert.match(text, /THING_KEY: \(secret\) is not 8 hex digits/)
  assert.match(text, /THING_NAME: is required, text/)
  assert.match(text, /--window: "soon" is not a duration/)
  assert.match(text, /THING_OPEN: "maybe" is not true or false/)
  assert.match(text, /THING_LEVEL: "loud" is not one of debug, info/)
  assert.match(text, /THING_RATIO: "2" is not a number from 0 to 1/)
  assert.match(text, /THING_SITE: "ftp:\/\/example.com" is not a URL \(http:\/\/, https:\/\/\)/)
  assert.ok(!text.includes('hunter2'))
})

test('an env file fills what the environment leaves open, and a missing one is said', () => {
  const folder = mkdtempSync(join(tmpdir(), 'millisky-config-'))
  try {
    const file = join(folder, 'pds.env')
    writeFileSync(file, '# comment\nTHING_NAME="from file"\nTHING_PORT=1\nTHING_WINDOW=1m\n')
    const env = { THING_PORT: '2', THING_NAME: '' }
    for (const given of [
      readSettings(table, ['--env-file', file], { env }),
      readSettings(table, [`--env-file=${file}`], { env }),
      readSettings(table, [], { env, envFile: file }),
    ]) {
      assert.equal(given.name, 'from file')
      assert.equal(given.port, 2)
      assert.equal(given.window, 60_000)
    }
    assert.match(problemsOf(['--env-file', join(folder, 'none')], named)[0]!, /cannot be read \(ENOENT\)/)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('variables that look like ours and are not', () => {
  const env = { ...named, THING_PROT: '1', THING_LEGACY: '1', OTHER: '1' }
  assert.deepEqual(unknownVariables(table, ['THING_'], env), ['THING_PROT'])
})

test('a secret may have spaces, of which lists otherwise make several', () => {
  const env = { ...named, THING_PASSWORDS: 'correct horse, battery staple ,', THING_HOSTS: 'a b,c' }
  const { passwords, hosts } = readSettings(table, [], { env })
  assert.deepEqual(
    [passwords, hosts],
    [
      ['correct horse', 'battery staple'],
      ['a', 'b', 'c'],
    ],
  )
})

test('what is shown holds no secret', () => {
  const given = readSettings(table, [], { env: { ...named, THING_PASSWORD: 'hunter2', THING_KEY: '00010203' } })
  const shown = shownSettings(table, given)
  assert.equal(shown.password, '(secret)')
  assert.equal(shown.key, '(secret)')
  assert.equal(shown.window, '3d')
  assert.equal(shown.hosts, 'a,b')
  assert.equal(shown.size, '5MiB')
})

test('help and documentation list every setting', () => {
  const help = settingsHelp(table)
  const page = settingsMarkdown(table)
  for (const text of [help, page]) {
    for (const { env } of Object.values(table.settings)) assert.ok(text.includes(env[0]), env[0])
  }
  assert.match(help, /--port <port> {3}THING_PORT\n {8}Where to listen\. \[2583\]/)
  assert.match(page, /### Limits/)
  assert.match(page, /\| `THING_WINDOW` \| `--window` \| a duration .* \| `3d` \| How \\\| long\. \|/)
})

test('two settings cannot share a name', () => {
  assert.throws(
    () =>
      defineSettings('x', {
        a: { type: 'string', env: ['SAME'], doc: '' },
        b: { type: 'string', env: ['SAME'], doc: '' },
      }),
    /SAME of b/,
  )
})
