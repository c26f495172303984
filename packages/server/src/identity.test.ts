import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Identity } from '@millisky/core/did'
import { buildDidDocument } from '@millisky/core/did'
import { Refused, Unavailable } from '@millisky/core/errors'
import type { Did, Handle } from '@millisky/core/syntax'
import type { FetchBytes } from './fetch.ts'
import type { Dated, MemoryStore } from './identity/memory.ts'
import { Identities, type IdentitiesParts, type ResolutionFailure, resolutionFailure } from './identity.ts'

const DID = 'did:plc:ewvi7nxzyoun6zhxrhs64oiz' as Did
const OTHER = 'did:plc:ragtjsm2j2vknwkz3zp4oxrd' as Did
const HANDLE = 'alice.example.com' as Handle
const KEY = 'did:key:zQ3shXjHeiBuRCKmM36cuYnm7YEMzhGnCmCyW92sRJ9pribSF'
const MINUTE = 60_000
const HOUR = 3_600_000

const documentOf = (did: Did, handle: string = HANDLE, pds = 'https://pds.example.com') =>
  buildDidDocument(did, {
    alsoKnownAs: [`at://${handle}`],
    verificationMethods: { atproto: KEY },
    services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: pds } },
  })

type Reply = { status?: number; body?: unknown; error?: Error } | null

/** A world: what URLs answer and what TXT records there are, with all questions noted and a clock. */
class World {
  now = 1_700_000_000_000
  readonly asked: string[] = []
  replies: Record<string, Reply> = { [`https://plc.example/${DID}`]: { body: documentOf(DID) } }
  txt: Record<string, string[][] | Error> = {}
  /** Set to make answers wait until it resolves. */
  hold: Promise<void> | null = null

  readonly fetch: FetchBytes = async url => {
    const key = String(url)
    this.asked.push(key)
    if (this.hold) await this.hold
    const { status = 200, body = '', error } = this.replies[key] ?? { status: 404 }
    if (error) throw error
    const text = typeof body === 'string' ? body : JSON.stringify(body)
    return { status, headers: new Headers() as never, url: key, bytes: Buffer.from(text) }
  }

  readonly resolveTxt = async (name: string) => {
    this.asked.push(name)
    const found = this.txt[name] ?? []
    if (found instanceof Error) throw found
    return found
  }

  identities(parts: Partial<IdentitiesParts> = {}): Identities {
    return new Identities({
      plcUrl: 'https://plc.example/',
      fetch: this.fetch,
      resolveTxt: this.resolveTxt,
      now: () => this.now,
      ...parts,
    })
  }
}

const isFailure = (kind: ResolutionFailure) => (error: unknown) => resolutionFailure(error) === kind
const TXT = `_atproto.${HANDLE}`
const WELL_KNOWN = `https://${HANDLE}/.well-known/atproto-did`

test('a did:plc comes from the directory, a did:web from its host', async () => {
  const world = new World()
  const identities = world.identities()
  const { handle, pds, signingKey } = await identities.resolveDid(DID)
  assert.deepEqual({ handle, pds, signingKey }, { handle: HANDLE, pds: 'https://pds.example.com', signingKey: KEY })
  const web = 'did:web:bob.example.com' as Did
  world.replies['https://bob.example.com/.well-known/did.json'] = { body: documentOf(web) }
  assert.equal((await identities.resolveDid(web)).did, web)
})

test('the failures can be told apart', async () => {
  const world = new World()
  const identities = world.identities()
  const cases: [string, ResolutionFailure][] = [
    ['did:plc:short', 'bad-syntax'],
    ['did:web:example.com:path', 'bad-syntax'],
    ['did:web:localhost%3A1234', 'bad-syntax'],
    ['nonsense', 'bad-syntax'],
    ['did:key:z6Mk', 'unsupported-method'],
    [OTHER, 'not-found'],
  ]
  for (const [did, kind] of cases) await assert.rejects(identities.resolveDid(did as Did), isFailure(kind), did)
  const url = `https://plc.example/${DID}`
  const replies: [Reply, ResolutionFailure][] = [
    [{ status: 410 }, 'tombstoned'],
    [{ status: 500 }, 'failed'],
    [{ body: 'not json' }, 'failed'],
    [{ body: documentOf(OTHER) }, 'failed'],
    [{ body: [] }, 'failed'],
    [{ error: new Unavailable('UpstreamTimeout', 'slow', 504) }, 'failed'],
    [{ error: new Refused('ForbiddenAddress', 'private') }, 'failed'],
  ]
  for (const [reply, kind] of replies) {
    world.replies[url] = reply
    await assert.rejects(world.identities().resolveDid(DID), isFailure(kind))
  }
  assert.equal(resolutionFailure(new Error('bug')), null)
})

test('in development did:web may be localhost with a port', async () => {
  const world = new World()
  const did = 'did:web:localhost%3A1234' as Did
  world.replies['http://localhost:1234/.well-known/did.json'] = { body: documentOf(did) }
  assert.equal((await world.identities({ development: {} }).resolveDid(did)).did, did)
})

test('an answer is remembered, refreshed behind the scenes when old, asked anew when too old', async () => {
  const world = new World()
  const identities = world.identities()
  const url = `https://plc.example/${DID}`
  await identities.resolveDid(DID)
  world.now += HOUR - 1
  await identities.resolveDid(DID)
  assert.equal(world.asked.length, 1)
  world.now += 1
  world.replies[url] = { body: documentOf(DID, 'new.example.com') }
  assert.equal((await identities.resolveDid(DID)).handle, HANDLE, 'the old one, at once')
  await new Promise(setImmediate)
  assert.equal(world.asked.length, 2)
  assert.equal((await identities.resolveDid(DID)).handle, 'new.example.com')
  world.now += 24 * HOUR
  world.replies[url] = { status: 500 }
  await assert.rejects(identities.resolveDid(DID), isFailure('failed'))
})

test('while the source fails the old answer serves, and the source is left alone for a while', async () => {
  const world = new World()
  const identities = world.identities()
  await identities.resolveDid(DID)
  world.replies[`https://plc.example/${DID}`] = { status: 503 }
  world.now += 2 * HOUR
  for (let i = 0; i < 5; i++) assert.equal((await identities.resolveDid(DID)).handle, HANDLE)
  await new Promise(setImmediate)
  assert.equal((await identities.resolveDid(DID)).handle, HANDLE)
  assert.equal(world.asked.length, 2)
  world.now += 2 * MINUTE
  await identities.resolveDid(DID)
  assert.equal(world.asked.length, 3)
})

test('a tombstone ends the old answer', async () => {
  const world = new World()
  const identities = world.identities()
  await identities.resolveDid(DID)
  world.replies[`https://plc.example/${DID}`] = { status: 410 }
  world.now += 2 * HOUR
  await identities.resolveDid(DID)
  await new Promise(setImmediate)
  await assert.rejects(identities.resolveDid(DID), isFailure('tombstoned'))
  assert.equal(identities.peek(DID), null)
})

test('a failure is remembered for two minutes', async () => {
  const world = new World()
  const identities = world.identities()
  await assert.rejects(identities.resolveDid(OTHER), isFailure('not-found'))
  world.replies[`https://plc.example/${OTHER}`] = { body: documentOf(OTHER) }
  world.now += 2 * MINUTE - 1
  await assert.rejects(identities.resolveDid(OTHER), isFailure('not-found'))
  assert.equal(world.asked.length, 1)
  world.now += 1
  assert.equal((await identities.resolveDid(OTHER)).did, OTHER)
})

test('who asks at the same time shares one question', async () => {
  const world = new World()
  const identities = world.identities()
  const gate = Promise.withResolvers<void>()
  world.hold = gate.promise
  const all = Promise.all(Array.from({ length: 50 }, () => identities.resolveDid(DID)))
  gate.resolve()
  assert.equal(new Set(await all).size, 1)
  assert.equal(world.asked.length, 1)
})

test('a forced refresh is not answered by a question that was already on its way', async () => {
  const world = new World()
  const identities = world.identities()
  const gate = Promise.withResolvers<void>()
  world.hold = gate.promise
  const before = identities.resolveDid(DID)
  await new Promise(setImmediate)
  const forced = [identities.resolveDid(DID, { fresh: true }), identities.resolveDid(DID, { fresh: true })]
  world.replies[`https://plc.example/${DID}`] = { body: documentOf(DID, 'new.example.com') }
  gate.resolve()
  await before
  assert.deepEqual(
    (await Promise.all(forced)).map(identity => identity.handle),
    ['new.example.com', 'new.example.com'],
  )
  assert.equal(world.asked.length, 2)
})

test('forced refreshes have a budget per DID, which also bounds expiry', async () => {
  const world = new World()
  const identities = world.identities()
  for (let i = 0; i < 20; i++) await identities.resolveDid(DID, { fresh: true })
  assert.equal(world.asked.length, 5)
  assert.equal(identities.expire(DID), false)
  for (let i = 0; i < 3; i++) await identities.resolveDid(DID, { fresh: 'always' })
  assert.equal(world.asked.length, 8, 'owners have one of their own')
  world.now += 5 * MINUTE
  assert.equal(identities.expire(DID), true)
  assert.equal(identities.peek(DID), null)
  await identities.resolveDid(DID)
  assert.equal(world.asked.length, 9)
  assert.equal(identities.peek(DID)?.did, DID)
})

test('an expired answer still serves when nothing better can be had', async () => {
  const world = new World()
  const identities = world.identities()
  await identities.resolveDid(DID)
  identities.expire(DID)
  world.replies[`https://plc.example/${DID}`] = { status: 503 }
  assert.equal((await identities.resolveDid(DID)).handle, HANDLE)
  assert.equal(world.asked.length, 2)
  await assert.rejects(identities.resolveDid(DID, { fresh: true }), isFailure('failed'), 'but not to who insists')
})

test('memory is bounded, the least recently used go first', async () => {
  const world = new World()
  const dids = ['a', 'b', 'c'].map(name => `did:web:${name}.example.com` as Did)
  for (const did of dids) {
    world.replies[`https://${did.slice(8)}/.well-known/did.json`] = { body: documentOf(did) }
  }
  const identities = world.identities({ settings: { dids: { entriesMax: 2 } } })
  const [a, b, c] = dids as [Did, Did, Did]
  for (const did of [a, b, a, c]) await identities.resolveDid(did)
  assert.deepEqual(
    [a, b, c].map(did => identities.peek(did) !== null),
    [true, false, true],
  )
})

test('only so many questions are asked at a time, and only so many wait', async () => {
  const world = new World()
  const gate = Promise.withResolvers<void>()
  world.hold = gate.promise
  const identities = world.identities({ settings: { lookupsMax: 2, waitingMax: 3 } })
  const asked = Array.from({ length: 6 }, (_, i) => identities.resolveDid(`did:web:h${i}.example.com` as Did))
  const settled = Promise.allSettled(asked)
  await new Promise(setImmediate)
  assert.equal(world.asked.length, 2)
  const known = identities.resolveDid(DID)
  await new Promise(setImmediate)
  assert.equal(world.asked.length, 3, 'the directory is asked though hosts of strangers do not answer')
  gate.resolve()
  assert.equal((await known).did, DID)
  const kinds = (await settled).map(result => result.status === 'rejected' && resolutionFailure(result.reason))
  assert.deepEqual(kinds, ['not-found', 'not-found', 'not-found', 'not-found', 'not-found', 'failed'])
})

test('documents outlive the process in a store', async () => {
  const world = new World()
  const kept = new Map<Did, Dated<Identity>>()
  const store: MemoryStore<Did, Identity> = {
    get: did => kept.get(did) ?? null,
    put: (did, dated) => void kept.set(did, dated),
    delete: did => void kept.delete(did),
  }
  await world.identities({ store }).resolveDid(DID)
  await new Promise(setImmediate)
  world.now += 30 * MINUTE
  assert.equal((await world.identities({ store }).resolveDid(DID)).handle, HANDLE)
  assert.equal(world.asked.length, 1)
  world.replies[`https://plc.example/${DID}`] = { status: 503 }
  world.now += 2 * HOUR
  assert.equal((await world.identities({ store }).resolveDid(DID)).handle, HANDLE, 'old, but better than nothing')
  const errors: unknown[] = []
  const broken = {
    ...store,
    get: () => {
      throw new Error('disk gone')
    },
  }
  const observer = { storeFailed: (error: unknown) => errors.push(error) }
  await assert.rejects(world.identities({ store: broken, observer }).resolveDid(DID), isFailure('failed'))
  assert.equal(errors.length, 1)
})

test('where the store is told of changes by others, nobody has to be asked again', async () => {
  const world = new World()
  const identities0 = world.identities({ slim: identity => ({ ...identity, doc: { id: identity.did } }) })
  const value = await identities0.resolveDid(DID)
  assert.deepEqual(value.doc, { id: DID })
  const kept = new Map<Did, Dated<Identity>>([[DID, { value, at: world.now }]])
  let reads = 0
  const peek = (did: Did) => {
    reads++
    const found = kept.get(did)
    return found ? { ...found, at: world.now } : null
  }
  const store: MemoryStore<Did, Identity> = { peek, get: peek, put() {}, delete() {} }
  const identities = world.identities({ store })
  world.asked.length = 0
  assert.equal(identities.peek(OTHER), null)
  assert.equal(identities.peek(DID)?.handle, HANDLE)
  assert.equal(identities.peek(DID)?.handle, HANDLE)
  assert.equal(reads, 2, 'what is in memory is not read again')
  world.now += 30 * HOUR
  kept.set(DID, { value: { ...value, handle: 'changed.example.com' as Handle }, at: 0 })
  assert.equal((await identities.resolveDid(DID)).handle, 'changed.example.com')
  identities.revise({ ...value, handle: 'revised.example.com' as Handle })
  identities.revise({ ...value, did: OTHER })
  assert.equal(identities.peek(DID)?.handle, 'revised.example.com')
  assert.equal(identities.peek(OTHER), null)
  identities.forget(DID)
  assert.equal((await identities.resolveDid(DID)).handle, 'changed.example.com')
  assert.deepEqual(world.asked, [])
})

test('what is learned while a question is under way is newer than its answer', async () => {
  const world = new World()
  const identities = world.identities()
  const known = await identities.resolveDid(DID)
  const gate = Promise.withResolvers<void>()
  world.hold = gate.promise
  const forced = identities.resolveDid(DID, { fresh: true })
  await new Promise(setImmediate)
  world.now += 1
  identities.revise({ ...known, handle: 'new.example.com' as Handle })
  gate.resolve()
  assert.equal((await forced).handle, 'new.example.com')
  assert.equal(identities.peek(DID)?.handle, 'new.example.com')
})

test('a handle comes from DNS, also in several chunks and among other records', async () => {
  const world = new World()
  world.txt[TXT] = [['v=spf1 -all'], ['did=', DID.slice(0, 10), DID.slice(10)], [`did=${DID}`]]
  assert.equal(await world.identities().resolveHandle('Alice.Example.COM' as Handle), DID)
})

test('a handle comes from the well-known file when DNS has nothing or cannot say', async () => {
  for (const records of [[], [['other=1']], [['did=not-a-did']], new Error('SERVFAIL')]) {
    const world = new World()
    world.txt[TXT] = records
    world.replies[WELL_KNOWN] = { body: ` ${DID}\r\n` }
    assert.equal(await world.identities().resolveHandle(HANDLE), DID)
  }
})

test('DNS is preferred, and decides without waiting for the other', async () => {
  const world = new World()
  world.txt[TXT] = [[`did=${DID}`]]
  world.replies[WELL_KNOWN] = { body: OTHER }
  world.hold = new Promise(() => {})
  assert.equal(await world.identities().resolveHandle(HANDLE), DID)
})

test('two DIDs in DNS are no answer, whatever the well-known file says', async () => {
  const world = new World()
  world.txt[TXT] = [[`did=${DID}`], [`did=${OTHER}`]]
  world.replies[WELL_KNOWN] = { body: DID }
  await assert.rejects(
    world.identities().resolveHandle(HANDLE),
    error => error instanceof Refused && error.error === 'HandleNotFound' && /different DIDs/.test(error.message),
  )
})

test('a handle that is not found says each step', async () => {
  const world = new World()
  world.replies[WELL_KNOWN] = { body: '<html>' }
  const identities = world.identities()
  await assert.rejects(identities.resolveHandle(HANDLE), error => {
    assert.ok(error instanceof Refused)
    assert.match(error.message, /_atproto\.alice\.example\.com has no TXT record.*does not hold a DID/)
    return true
  })
  world.txt[TXT] = new Error('SERVFAIL')
  const report = await identities.explainHandle(HANDLE)
  assert.equal(report.did, null)
  assert.match(report.dns.problem ?? '', /SERVFAIL/)
  world.now += 3 * MINUTE
  await assert.rejects(
    identities.resolveHandle(HANDLE),
    error => error instanceof Unavailable && error.error === 'HandleResolutionFailed',
  )
})

test('handles under domains that never resolve are not asked for', async () => {
  const world = new World()
  const names = ['a.local', 'a.invalid', 'handle.invalid', 'a.onion', 'a.test', 'a.localhost']
  for (const name of names) await assert.rejects(world.identities().resolveHandle(name as Handle), Refused, name)
  await assert.rejects(world.identities().resolveHandle('not a handle' as Handle), Refused)
  assert.deepEqual(world.asked, [])
  world.replies['http://a.localhost:2583/.well-known/atproto-did'] = { body: DID }
  const development = { wellKnownUrl: (handle: Handle) => `http://${handle}:2583/.well-known/atproto-did` }
  assert.equal(await world.identities({ development }).resolveHandle('a.localhost' as Handle), DID)
})

test('both directions have to agree', async () => {
  const world = new World()
  const identities = world.identities()
  world.txt[TXT] = [[`did=${DID}`]]
  assert.equal((await identities.resolve(HANDLE)).handle, HANDLE)
  assert.equal((await identities.resolve(DID)).handle, HANDLE)
  const liar = new World()
  liar.txt[TXT] = [[`did=${OTHER}`]]
  liar.replies[`https://plc.example/${OTHER}`] = { body: documentOf(OTHER, 'somebody.example.com') }
  const resolved = await liar.identities().resolve(HANDLE)
  assert.equal(resolved.did, OTHER)
  assert.equal(resolved.handle, 'handle.invalid', 'the DID does not claim the handle')
  assert.equal((await liar.identities().resolve(DID)).handle, 'handle.invalid', 'the handle points elsewhere')
  const nameless = new World()
  assert.equal((await nameless.identities().resolve(DID)).handle, 'handle.invalid', 'the handle is not found')
})

test('what a server knows itself needs no question', async () => {
  const world = new World()
  const own = 'did:web:own.example.com' as Did
  const identities = world.identities({
    local: {
      did: did => (did === own ? ({ did: own, handle: HANDLE } as Identity) : undefined),
      handle: handle => (handle === HANDLE ? own : handle.endsWith('.example.com') ? null : undefined),
    },
  })
  assert.equal((await identities.resolve(HANDLE)).did, own)
  await assert.rejects(identities.resolveHandle('free.example.com' as Handle), Refused)
  assert.deepEqual(world.asked, [])
  assert.equal((await identities.resolveDid(DID)).did, DID)
})

test('questions are counted by method and outcome', async () => {
  const world = new World()
  const seen: string[] = []
  const identities = world.identities({ observer: { asked: (...what) => seen.push(what.join(' ')) } })
  await identities.resolveDid(DID)
  await identities.resolveDid(OTHER).catch(() => {})
  await identities.resolveHandle(HANDLE).catch(() => {})
  assert.deepEqual(seen, ['plc found', 'plc not-found', 'handle not-found'])
})
