// A PDS that was put back to an older copy of its data: what its relays say, and how it comes back to them.
import assert from 'node:assert/strict'
import { cp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { until } from '@millisky/server/testing-until'
import { startDaemons } from './network.ts'

const BASIC = { authorization: `Basic ${Buffer.from('admin:pds-admin').toString('base64')}` }

interface RelayStatus {
  seq: number
  relays: { verdict: string; severity: string; seq?: number; advice?: string }[]
}

test('after an older copy was put back the guard finds out, and its advice helps', async t => {
  const { folder, pds, relay, stop } = await startDaemons()
  t.after(stop)
  const post = async (method: string, body: object, headers: Record<string, string> = {}) => {
    const reply = await fetch(`${pds.url}/xrpc/${method}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(body),
    })
    assert.equal(reply.status, 200, `${await reply.clone().text()}\n${pds.process?.output}`)
    return JSON.parse((await reply.text()) || 'null')
  }
  const status = async (): Promise<RelayStatus> => {
    const url = `${pds.url}/xrpc/net.millisky.pds.getRelayStatus?check=true`
    return (await (await fetch(url, { headers: BASIC })).json()) as RelayStatus
  }
  const account = { handle: 'alice.test', email: 'alice@example.com', password: 'alice-password' }
  const { did, accessJwt } = await post('com.atproto.server.createAccount', account)
  const write = (text: string) => {
    const record = { $type: 'com.example.note', text }
    const body = { repo: did, collection: 'com.example.note', record, validate: false }
    return post('com.atproto.repo.createRecord', body, { authorization: `Bearer ${accessJwt}` })
  }
  const revAtRelay = async () => {
    const reply = await fetch(`${relay.url}/xrpc/com.atproto.sync.getRepoStatus?did=${did}`)
    return ((await reply.json()) as { rev?: string }).rev
  }
  const followed = () =>
    until('the Relay has followed', async () => {
      const found = await status()
      return found.relays[0]?.seq === found.seq && found
    })
  await write('before the copy')
  assert.equal((await followed()).relays[0]!.verdict, 'follows')

  await pds.stop()
  const data = join(folder, 'pds')
  await cp(data, `${data}.copy`, { recursive: true })
  await pds.start()
  for (let i = 0; i < 5; i++) await write('after the copy')
  const { seq } = await followed()

  await pds.stop()
  await rm(data, { recursive: true })
  await cp(`${data}.copy`, data, { recursive: true })
  await pds.start()
  const lost = await status()
  const [found] = lost.relays
  assert.deepEqual([found!.verdict, found!.severity, found!.seq], ['ahead', 'critical', seq])
  assert.ok(lost.seq < seq)
  const advised = /PDS_FIRST_SEQ=(\d+)/.exec(found!.advice!)![1]!
  assert.equal((await fetch(`${pds.url}/xrpc/_health`)).status, 200)

  await pds.stop()
  pds.env.PDS_FIRST_SEQ = advised
  await pds.start()
  // A Relay that was told to begin anew begins with what comes once it is connected.
  const host = `${relay.url}/xrpc/net.millisky.relay.admin.getHost?hostname=${new URL(pds.url).host}`
  const authorization = `Basic ${Buffer.from('admin:relay-admin').toString('base64')}`
  await until('the Relay is back', async () => {
    const reply = await fetch(host, { headers: { authorization } })
    return ((await reply.json()) as { connected: boolean }).connected
  })
  await post('net.millisky.pds.announceAccount', { did }, BASIC)
  const { commit } = await write('after the restore')
  await until('the Relay takes what comes after', async () => (await revAtRelay()) === commit.rev)
  assert.equal((await followed()).relays[0]!.verdict, 'follows')
})
