// The commands an operator types, against a running network.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { commandLine } from './command-line.ts'
import { type Network, startNetwork } from './network.ts'

let network: Network
before(async () => {
  network = await startNetwork()
})
after(() => network?.stop())

const { millisky, json } = commandLine(() => ({
  MILLISKY_PDS: network.pds,
  PDS_ADMIN_PASSWORD: network.pdsAdminPassword,
}))

const status = async (did: string) =>
  (await (await fetch(`${network.pds}/xrpc/com.atproto.sync.getRepoStatus?did=${did}`)).json()) as {
    active: boolean
    status?: string
  }

test('an account is made, seen, changed, taken down, served again and deleted', async () => {
  const [made] = await json<{ did: string; handle: string; password: string }>(
    'account',
    'create',
    'walter.test',
    'walter@example.com',
  )
  assert.ok(made)
  const { did, password } = made
  const login = (password: string) =>
    fetch(`${network.pds}/xrpc/com.atproto.server.createSession`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ identifier: 'walter.test', password }),
    })
  assert.equal((await login(password)).status, 200)

  const rows = await json<{ did: string; status: string }>('account', 'list')
  assert.deepEqual(
    rows.map(({ did, status }) => ({ did, status })),
    [{ did, status: 'active' }],
  )
  const [info] = await json<{ email: string }>('account', 'info', 'walter.test')
  assert.equal(info?.email, 'walter@example.com')
  assert.deepEqual(await json('account', 'search', 'walter@'), [
    { did, handle: 'walter.test', email: 'walter@example.com' },
  ])

  const [reset] = await json<{ password: string }>('account', 'reset-password', did)
  assert.equal((await login(password)).status, 401)
  assert.equal((await login(reset!.password)).status, 200)
  await json('account', 'update', did, '--handle', 'walt.test', '--email', 'walt@example.com')
  const [changed] = await json<{ email: string; handle: string }>('account', 'info', did)
  assert.deepEqual([changed?.handle, changed?.email], ['walt.test', 'walt@example.com'])

  const [storage] = await json<{ total: { blobs: number }; accounts: { did: string }[] }>('account', 'storage', did)
  assert.deepEqual([storage!.total.blobs, storage!.accounts[0]!.did], [0, did])
  await json('account', 'takedown', did)
  assert.deepEqual(await status(did), { did, active: false, status: 'takendown' })
  await json('account', 'untakedown', did)
  assert.equal((await status(did)).active, true)
  await json('account', 'deactivate', did)
  assert.deepEqual(await status(did), { did, active: false, status: 'deactivated' })
  await json('account', 'activate', did)
  assert.equal((await status(did)).active, true)

  assert.equal((await millisky('account', 'delete', did)).code, 2, 'not without --yes')
  await json('account', 'delete', did, '--yes')
  assert.deepEqual(await json('account', 'list'), [])
})

test('invite codes are made, listed and taken back', async () => {
  const [invite] = await json<{ code: string }>('invite', 'create', '--uses', '3')
  const listed = await json<{ code: string; uses: number; disabled: boolean }>('invite', 'list')
  const found = listed.find(({ code }) => code === invite?.code)
  assert.deepEqual([found?.uses, found?.disabled], [3, false])
  await json('invite', 'disable', invite!.code)
  const after = await json<{ code: string; disabled: boolean }>('invite', 'list')
  assert.equal(after.find(({ code }) => code === invite?.code)?.disabled, true)
})

test('a Relay is asked to crawl; keys are made; mistakes are explained', async () => {
  const asked = await millisky('request-crawl', network.relay)
  assert.equal(asked.code, 0, asked.output)
  // The account of the first test has left events with it.
  const followed = await until('the Relay has followed', async () => {
    const [found] = await json<{ seq: number; relays: { relay: string; verdict: string; seq?: number }[] }>(
      'relays',
      '--check',
    )
    return found?.relays[0]?.seq === found?.seq && found
  })
  assert.deepEqual(
    followed.relays.map(({ verdict }) => verdict),
    ['follows'],
  )
  const { output } = await millisky('key', 'generate')
  const [, secret, didKey] = /private {2}([0-9a-f]{64})\npublic {3}(did:key:z\w+)/.exec(output) ?? []
  assert.ok(secret)
  assert.equal((await millisky('key', 'public', secret)).output.trim(), didKey)

  const wrong = await millisky('invite', 'list', '--admin-password', 'guess')
  assert.equal(wrong.code, 1)
  assert.match(wrong.output, /AuthenticationRequired/)
  const nobody = await millisky('account', 'info', 'nobody.test')
  assert.equal(nobody.code, 1)
  assert.match(nobody.output, /Unable to resolve handle/)
  const away = await millisky('account', 'list', '--pds', 'http://localhost:1')
  assert.equal(away.code, 1)
  assert.match(away.output, /does not answer/)
})
