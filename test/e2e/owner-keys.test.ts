// Rotation keys that the server never sees, and signing keys that change, by the commands that people type.
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AtpAgent } from '@atproto/api'
import { until } from '@millisky/server/testing-until'
import { startMailbox } from '../../packages/pds/src/testing-mail.ts'
import { startNetwork } from '../../packages/pds/src/testing-network.ts'
import { run } from './command-line.ts'
import { verifyingConsumer } from './consumers.ts'
import { newPlace, ourDaemon } from './migration.ts'

test('owners sign what their DIDs say; the server signs commits', async t => {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-keys-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const { plc } = await startNetwork(t as never)
  const mailbox = await startMailbox(t as never)
  const place = await newPlace('pds')
  const pds = ourDaemon(place, plc.url, mailbox, join(folder, 'data'))
  pds.env.PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX = ''
  await pds.start()
  t.after(() => pds.stop())
  const env = { MILLISKY_PDS: place.url, PDS_ADMIN_PASSWORD: 'admin-of-tests', PDS_DID_PLC_URL: plc.url }
  const millisky = async (...args: string[]) => {
    const ran = await run(args, env)
    assert.equal(ran.code, 0, `${args.join(' ')}: ${ran.err}`)
    return ran.out
  }
  const file = async (name: string, text: string) => {
    const path = join(folder, name)
    await writeFile(path, text, { mode: 0o600 })
    return path
  }

  const pair = await millisky('key', 'generate')
  const keyFile = await file('rotation.key', pair)
  const rotationKey = /public\s+(\S+)/.exec(pair)![1]!
  const { signingKey } = JSON.parse(await millisky('account', 'reserve-key', '--json'))
  const named = ['--handle', 'alice.pds.test', '--pds', place.url, '--signing-key', signingKey]
  const unsigned = await file('genesis', await millisky('key', 'plc-genesis', ...named, '--rotation-key', rotationKey))
  const signed = await run(['key', 'sign-plc', unsigned, '--key-file', keyFile], env)
  assert.equal(signed.code, 0, signed.err)
  const did = signed.err.trim()
  assert.match(did, /^did:plc:[a-z2-7]{24}$/)
  const operation = await file('operation', signed.out)
  const made = await millisky(
    'account',
    'create',
    'alice.pds.test',
    'alice@example.com',
    '--plc-operation',
    operation,
    '--json',
  )
  const { password, ...account } = JSON.parse(made)
  assert.deepEqual(account, { did, handle: 'alice.pds.test' })
  const consumer = verifyingConsumer(place.url, plc.url, 0)
  t.after(() => consumer.close())
  const alice = new AtpAgent({ service: place.url })
  await alice.login({ identifier: 'alice.pds.test', password })
  await alice.post({ text: 'signed with the first key' })

  const refused = await run(['account', 'rotate-key', 'alice.pds.test'], env)
  assert.equal(refused.code, 1)
  const waiting = /The key (did:key:\S+) waits/.exec(refused.err)?.[1]
  assert.ok(waiting, refused.err)
  const next = await file('next', await millisky('key', 'plc-update', did, '--signing-key', waiting))
  const signedNext = await file('signed', await millisky('key', 'sign-plc', next, '--key-file', keyFile))
  await millisky('key', 'submit-plc', did, signedNext)
  assert.match(await millisky('account', 'rotate-key', did), new RegExp(waiting))
  const { uri } = await alice.post({ text: 'signed with the second key' })
  const seen = (): string[] =>
    consumer.events.filter(event => event.event === 'create').map(event => event.uri.toString())
  await until('the post', () => seen().includes(uri))
  assert.deepEqual(consumer.errors, [], 'each commit fits the key of its time')

  const stranger = await file('stranger.key', await millisky('key', 'generate', '--curve', 'p256'))
  const wrong = await run(['key', 'sign-plc', unsigned, '--key-file', stranger, '--curve', 'p256'], env)
  assert.deepEqual([wrong.code, /none of the operation's rotation keys/.test(wrong.err)], [1, true])
})
