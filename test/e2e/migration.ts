// An account moves from one PDS to another, step by step as clients do it (the account migration guide).
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { AtpAgent } from '@atproto/api'
import { until } from '@millisky/server/testing-until'
import { type Mailbox, startMailbox } from '../../packages/pds/src/testing-mail.ts'
import { startNetwork, type TestNetwork } from '../../packages/pds/src/testing-network.ts'
import { Daemon } from './network.ts'
import { freePort } from './ports.ts'

/** A PDS as a client sees it, whoever has written it. */
export interface Home {
  url: string
  /** Its own, since all of them are `localhost`. */
  did: string
  /** With a leading dot. */
  domain: string
}

export interface Place {
  port: number
  url: string
  did: string
  domain: string
}

/** A place for a server whose handles end in `.<name>.test`. */
export async function newPlace(name: string): Promise<Place> {
  const port = await freePort()
  return { port, url: `http://localhost:${port}`, did: `did:web:localhost%3A${port}`, domain: `.${name}.test` }
}

/** What sets a server apart from others on the same machine, in the words of both implementations. */
export function settingsOf({ port, did, domain }: Place, plcUrl: string, mailbox: Mailbox): Record<string, string> {
  return {
    PDS_HOSTNAME: 'localhost',
    PDS_PORT: String(port),
    PDS_SERVICE_DID: did,
    PDS_SERVICE_HANDLE_DOMAINS: domain,
    PDS_DEV_MODE: 'true',
    PDS_DISABLE_SSRF_PROTECTION: 'true',
    PDS_INVITE_REQUIRED: 'false',
    PDS_RATE_LIMITS_ENABLED: 'false',
    PDS_ADMIN_PASSWORD: 'admin-of-tests',
    PDS_DID_PLC_URL: plcUrl,
    PDS_JWT_SECRET: randomBytes(16).toString('hex'),
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: randomBytes(32).toString('hex'),
    // Preferences are kept where an app view is set; it is never asked.
    PDS_BSKY_APP_VIEW_URL: 'http://127.0.0.1:1',
    PDS_BSKY_APP_VIEW_DID: 'did:web:app.test',
    ...mailbox.env,
  }
}

/** Ours, as a process. */
export function ourDaemon(place: Place, plcUrl: string, mailbox: Mailbox, folder: string): Daemon {
  return new Daemon('pds', place.port, { ...settingsOf(place, plcUrl, mailbox), PDS_DATA_DIRECTORY: folder })
}

/** What homes share, and the end of it all. */
export interface Surroundings {
  folder: string
  network: TestNetwork
  mailbox: Mailbox
  /** Tells what else is to be done at the end; what is told last comes first. */
  after(fn: () => Promise<void>): void
  end(): Promise<void>
}

export async function startSurroundings(): Promise<Surroundings> {
  const cleanups: (() => Promise<void>)[] = []
  const after = (fn: () => Promise<void>) => void cleanups.unshift(fn)
  const folder = await mkdtemp(join(tmpdir(), 'millisky-migration-'))
  after(() => rm(folder, { recursive: true, force: true }))
  const network = await startNetwork({ after })
  const mailbox = await startMailbox({ after })
  const end = async () => {
    for (const cleanup of cleanups) await cleanup()
  }
  return { folder, network, mailbox, after, end }
}

export interface Mover {
  name: string
  password: string
  /** Signed in at the old home. */
  agent: AtpAgent
}

export async function signUp(home: Home, name: string): Promise<Mover> {
  const agent = new AtpAgent({ service: home.url })
  const password = `${name}-password`
  await agent.createAccount({ handle: `${name}${home.domain}`, email: `${name}@example.com`, password })
  return { name, password, agent }
}

export const PREFERENCES = [{ $type: 'app.bsky.actor.defs#adultContentPref' as const, enabled: true }]

/** Gives somebody something to take along: posts, two pictures, likes that come and go, preferences. */
export async function fill({ agent }: Mover): Promise<void> {
  for (const bytes of [Buffer.from('first picture'), Buffer.alloc(300_000, 'second')]) {
    const { data } = await agent.uploadBlob(bytes, { encoding: 'image/png' })
    const embed = { $type: 'app.bsky.embed.images', images: [{ image: data.blob, alt: '' }] }
    await agent.post({ text: 'a picture', embed: embed as never })
  }
  const { uri, cid } = await agent.post({ text: 'liked by its author' })
  for (let i = 0; i < 12; i++) await agent.post({ text: `post ${i}` })
  await agent.deleteLike((await agent.like(uri, cid)).uri)
  await agent.like(uri, cid)
  await agent.app.bsky.actor.putPreferences({ preferences: PREFERENCES })
}

const headersOf = (agent: AtpAgent) => ({ authorization: `Bearer ${agent.session!.accessJwt}` })

/** A token of the account's key for one method of the new home. */
export async function serviceToken(
  { agent }: Mover,
  to: Home,
  lxm = 'com.atproto.server.createAccount',
): Promise<string> {
  const { data } = await agent.com.atproto.server.getServiceAuth({ aud: to.did, lxm })
  return data.token
}

/** The account at its new home, deactivated. */
export async function arrive(mover: Mover, to: Home): Promise<AtpAgent> {
  const { name, password, agent: old } = mover
  const agent = new AtpAgent({ service: to.url })
  const token = await serviceToken(mover, to)
  const wanted = { handle: `${name}${to.domain}`, email: `${name}@example.com`, password, did: old.assertDid }
  await agent.com.atproto.server.createAccount(wanted, {
    headers: { authorization: `Bearer ${token}` },
    encoding: 'application/json',
  })
  await agent.login({ identifier: old.assertDid, password })
  return agent
}

/** Repository, blobs and preferences. Returns how many blobs were missing after the import. */
export async function carry({ agent: old }: Mover, agent: AtpAgent): Promise<number> {
  const did = old.assertDid
  const { data: car } = await old.com.atproto.sync.getRepo({ did })
  await agent.com.atproto.repo.importRepo(car as Uint8Array, { encoding: 'application/vnd.ipld.car' })
  let moved = 0
  for (let cursor: string | undefined; ; ) {
    const { data } = await agent.com.atproto.repo.listMissingBlobs({ limit: 1, ...(cursor ? { cursor } : {}) })
    for (const { cid } of data.blobs) {
      const blob = await old.com.atproto.sync.getBlob({ did, cid })
      await agent.com.atproto.repo.uploadBlob(blob.data, { encoding: blob.headers['content-type'] ?? '' })
      moved++
    }
    cursor = data.cursor
    if (!cursor) break
  }
  const { data } = await old.app.bsky.actor.getPreferences()
  await agent.app.bsky.actor.putPreferences({ preferences: data.preferences })
  return moved
}

/** Points the DID to the new home: signed by the old one against a code from the mail, submitted by the new one. */
export async function repoint({ agent: old }: Mover, agent: AtpAgent, mailbox: Mailbox): Promise<void> {
  await old.com.atproto.identity.requestPlcOperationSignature()
  const { code } = await mailbox.next()
  const { data: wanted } = await agent.com.atproto.identity.getRecommendedDidCredentials()
  const { data: signed } = await old.com.atproto.identity.signPlcOperation({ token: code, ...wanted })
  await agent.com.atproto.identity.submitPlcOperation({ operation: signed.operation })
}

/** The whole way, with what is to be seen on it. Returns the agent at the new home. @param announced - Waited for before the old home is left. */
export async function move(
  mover: Mover,
  to: Home,
  mailbox: Mailbox,
  announced: () => Promise<unknown> = async () => {},
): Promise<AtpAgent> {
  const { agent: old } = mover
  const did = old.assertDid
  const before = (await old.com.atproto.server.checkAccountStatus()).data
  const agent = await arrive(mover, to)
  const arrived = (await agent.com.atproto.server.checkAccountStatus()).data
  assert.deepEqual([arrived.activated, arrived.validDid, arrived.indexedRecords], [false, false, 0])
  assert.equal(await carry(mover, agent), 2, 'both pictures were missing')
  await assert.rejects(agent.com.atproto.server.activateAccount(), 'not before the DID points here')
  await repoint(mover, agent, mailbox)
  const ready = (await agent.com.atproto.server.checkAccountStatus()).data
  assert.deepEqual([ready.activated, ready.validDid], [false, true])
  for (const name of ['indexedRecords', 'expectedBlobs', 'importedBlobs', 'repoBlocks'] as const) {
    assert.equal(ready[name], before[name], name)
  }
  assert.equal(ready.expectedBlobs, ready.importedBlobs)
  await agent.com.atproto.server.activateAccount()
  await announced()
  const deleteAfter = new Date(Date.now() + 86_400_000).toISOString()
  await old.com.atproto.server.deactivateAccount({ deleteAfter })
  const status = async (service: string) =>
    (await new AtpAgent({ service }).com.atproto.sync.getRepoStatus({ did })).data
  const [there, here] = [await status(old.serviceUrl.href), await status(to.url)]
  assert.deepEqual([there.active, there.status, here.active], [false, 'deactivated', true])
  return agent
}

/** Lists what an account has: every record with its CID. */
export async function recordsOf(agent: AtpAgent): Promise<Record<string, string>> {
  const repo = agent.assertDid
  const { data } = await agent.com.atproto.repo.describeRepo({ repo })
  const found: Record<string, string> = {}
  for (const collection of data.collections) {
    for (let cursor: string | undefined; ; ) {
      const page = await agent.com.atproto.repo.listRecords({
        repo,
        collection,
        limit: 100,
        ...(cursor ? { cursor } : {}),
      })
      for (const { uri, cid } of page.data.records) found[uri] = cid
      cursor = page.data.cursor
      if (!cursor || page.data.records.length === 0) break
    }
  }
  return found
}

export async function askToCrawl(relay: string, home: Home): Promise<void> {
  const body = JSON.stringify({ hostname: new URL(home.url).host })
  await until('the relay takes it up', async () => {
    const headers = { 'content-type': 'application/json' }
    const reply = await fetch(`${relay}/xrpc/com.atproto.sync.requestCrawl`, { method: 'POST', headers, body })
    return reply.ok
  })
}

export { headersOf }
