import assert from 'node:assert/strict'
import { execFile, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { test } from 'node:test'

const millisky = resolve(import.meta.dirname, '../bin/millisky')

function run(...args: string[]): Promise<{ code: unknown; out: string; err: string }> {
  return new Promise(done => {
    execFile(millisky, args, { timeout: 90_000 }, (error, out, err) => done({ code: error ? error.code : 0, out, err }))
  })
}

test('every command tells its version and its options', async () => {
  for (const command of [[], ['dev'], ['plc'], ['pds'], ['relay']]) {
    const version = await run(...command, '--version')
    assert.deepEqual([version.code, version.err], [0, ''], command.join())
    assert.match(version.out, /^\d+\.\d+\.\d+\S*\n$/)
    const help = await run(...command, '--help')
    assert.equal(help.code, 0)
    assert.match(help.out, /^Usage: millisky/)
  }
})

test('a call that makes no sense is exit code 2 and one clear line', async () => {
  for (const [args, line] of [
    [[], /^Usage: millisky/],
    [['nonsense'], /unknown command 'nonsense'/],
    [['dev', '--pds-port', '70000'], /A port is a number from 0 to 65535/],
    [['dev', '--nonsense'], /unknown option '--nonsense'/],
    [['relay', '--nonsense'], /--nonsense: is not a setting of relay/],
    [['host', 'list', '--status', 'sleeping'], /Allowed choices are active, idle, offline, throttled, banned/],
  ] as const) {
    const { code, out, err } = await run(...args)
    assert.deepEqual([code, out], [2, ''], args.join(' '))
    assert.match(err, line)
  }
})

test('what cannot be looked at is told, and is no success', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-cli-'))
  try {
    for (const [args, line] of [
      [['relay-log', 'check', folder], /there is no log in/],
      [['relay-log', 'verify', 'localhost:2470'], /named by its URL, .* not "localhost:2470"/],
      [['host', 'list', '--relay', 'relay.example.com', '--admin-password', 'x'], /named by its URL/],
    ] as const) {
      const { code, out, err } = await run(...args)
      assert.deepEqual([code, out], [1, ''], args.join(' '))
      assert.match(err, line)
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})

test('a reader that has seen enough ends a command without complaint', () => {
  const { stdout, stderr } = spawnSync('sh', ['-c', `"${millisky}" pds --help | head -1`], { encoding: 'utf8' })
  assert.equal(stderr, '')
  assert.match(stdout, /^Usage: millisky pds/)
})

test('Ctrl-C ends the network in order, and nothing of it stays', { timeout: 90_000 }, async () => {
  const ports = ['--plc-port=0', '--pds-port=0', '--relay-port=0']
  // A terminal signals the whole process group at once.
  const dev = spawn(millisky, ['dev', '--ephemeral', '--verbose', ...ports], { detached: true })
  let output = ''
  for (const stream of [dev.stdout, dev.stderr]) {
    stream.setEncoding('utf8').on('data', text => {
      output += text
    })
  }
  const exit = once(dev, 'exit')
  try {
    while (!/asked to be crawled/.test(output) || !/Data {11}/.test(output)) {
      await Promise.race([once(dev.stdout, 'data'), once(dev.stderr, 'data'), exit])
      assert.equal(dev.exitCode, null, output)
    }
    const folder = /Data +(\S+)/.exec(output)![1]!
    assert.ok(existsSync(folder))
    process.kill(-dev.pid!, 'SIGINT')
    assert.deepEqual(await exit, [0, null], output)
    assert.doesNotMatch(output, /second signal|did not stop in order|had to be killed/)
    assert.equal(existsSync(folder), false)
  } finally {
    if (dev.exitCode === null) process.kill(-dev.pid!, 'SIGKILL')
  }
})

test('started again on the same folder it has the same addresses and passwords', { timeout: 90_000 }, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-cli-'))
  const readyFile = join(folder, 'ready.json')
  const runs: string[] = []
  try {
    for (let run = 0; run < 2; run++) {
      await writeFile(readyFile, 'left behind by a crash')
      const ports = ['--plc-port=0', '--pds-port=0', '--relay-port=0']
      const dev = spawn(millisky, ['dev', `--data-dir=${folder}/data`, `--ready-file=${readyFile}`, ...ports])
      const exit = once(dev, 'exit')
      try {
        const banner = (async () => {
          for await (const chunk of dev.stdout.setEncoding('utf8')) if (/Ctrl-C/.test(chunk)) return
        })()
        await Promise.race([banner, exit])
        while (dev.exitCode === null && !/^\{.*\}\n$/s.test(await readFile(readyFile, 'utf8').catch(() => ''))) {
          await new Promise(done => setTimeout(done, 20))
        }
        runs.push(await readFile(readyFile, 'utf8'))
      } finally {
        dev.kill('SIGTERM')
        assert.deepEqual(await exit, [0, null])
      }
      assert.equal(existsSync(readyFile), false)
    }
    assert.equal(runs[0], runs[1])
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})

/** A Node on this machine that is too old, if there is one: npm may well run on such. */
function oldNode(): string | undefined {
  const candidates = ['/usr/bin/node', '/usr/local/bin/node', '/opt/homebrew/bin/node'].filter(existsSync)
  return candidates.find(node => Number(spawnSync(node, ['-p', 'process.versions.node.split(".")[0]']).stdout) < 24)
}

const old = oldNode()
test('an older Node is refused in one clear line', { skip: old ? false : 'no Node below 24 here' }, () => {
  const { status, stderr } = spawnSync(old!, [resolve(import.meta.dirname, 'entry.mjs'), 'pds'], { encoding: 'utf8' })
  assert.equal(status, 1)
  assert.match(stderr, /^millisky needs Node 24 or newer and this is [\d.]+: .*\n$/)
})
