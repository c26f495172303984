import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { base32, base58, base64url, hex, unbase64url, unhex } from './bytes.ts'
import { encode, type Value } from './cbor.ts'
import { Cid } from './cid.ts'
import { SigningKey } from './crypto.ts'
import { parseDidDocument } from './did.ts'
import { Malformed, Refused } from './errors.ts'
import {
  applyPlcOperation,
  assertPlcOperation,
  type PlcEntry,
  type PlcLegacyCreate,
  type PlcOperation,
  type PlcTombstone,
  type PlcUpdate,
  parsePlcEntry,
  parsePlcOperation,
  plcCid,
  plcData,
  plcDidOf,
  plcGenesis,
  plcHead,
  plcSigner,
  plcToDocument,
  plcTombstone,
  plcUpdate,
  signPlcOperation,
  type Unsigned,
  verifyPlcLog,
} from './plc.ts'
import type { Did } from './syntax.ts'

const HOUR = 3_600_000
const START = Date.parse('2026-01-01T00:00:00Z')
const keys = [1, 2, 3, 4, 5, 6].map(n => SigningKey.fromPrivate(n % 2 ? 'k256' : 'p256', new Uint8Array(32).fill(n)))
const [recovery, server, third, signing] = keys as [SigningKey, SigningKey, SigningKey, SigningKey]
const rotationKeys = [recovery.didKey, server.didKey, third.didKey]

const unsignedGenesis = plcGenesis({
  rotationKeys,
  signingKey: signing.didKey,
  handle: 'alice.example.com',
  pds: 'https://pds.example.com',
})
const genesis = signPlcOperation<PlcUpdate>(unsignedGenesis, server)
const did = plcDidOf(genesis)

/** Accepts an operation into a log as a directory would. */
function accept(log: readonly PlcEntry[], operation: PlcOperation, hours: number, owner: Did = did): PlcEntry[] {
  const now = START + hours * HOUR
  const { cid, nullified } = applyPlcOperation(owner, log, operation, now)
  const before = log.map(entry => (nullified.includes(entry.cid) ? { ...entry, nullified: true } : entry))
  return [...before, { did: owner, operation, cid, createdAt: new Date(now).toISOString(), nullified: false }]
}

function rename(last: PlcOperation, handle: string, key: SigningKey): PlcUpdate {
  return signPlcOperation<PlcUpdate>(plcUpdate(last, { alsoKnownAs: [`at://${handle}`] }), key)
}

function end(last: PlcOperation, key: SigningKey): PlcTombstone {
  return signPlcOperation<PlcTombstone>(plcTombstone(last), key)
}

function refuses(error: string, run: () => unknown): void {
  assert.throws(run, (thrown: unknown) => thrown instanceof Refused && thrown.error === error && thrown.status === 400)
}

const start = accept([], genesis, 0)

test('a DID is the hash of its signed first operation', () => {
  const digest = Cid.ofCbor(encode(genesis as unknown as Value)).digest
  assert.match(did, /^did:plc:[a-z2-7]{24}$/)
  assert.equal(did, `did:plc:${base32(digest).slice(0, 24)}`)
  assert.notEqual(plcDidOf(signPlcOperation<PlcUpdate>(unsignedGenesis, recovery)), did)
  assert.doesNotThrow(() => assertPlcOperation(JSON.parse(JSON.stringify(genesis))))
  refuses('GenesisMismatch', () => applyPlcOperation('did:plc:44ybard66vv44zksje25o7dz' as Did, [], genesis, START))
  refuses('InvalidSignature', () => {
    const stranger = signPlcOperation<PlcUpdate>(unsignedGenesis, signing)
    applyPlcOperation(plcDidOf(stranger), [], stranger, START)
  })
  refuses('Misordered', () => applyPlcOperation(did, [], rename(genesis, 'b.com', server), START))
  refuses('Misordered', () => applyPlcOperation(did, [], end(genesis, server), START))
})

test('the document says what the operation says', () => {
  const data = plcData(genesis)!
  const identity = parseDidDocument(plcToDocument(did, data), did)
  assert.equal(identity.handle, 'alice.example.com')
  assert.equal(identity.pds, 'https://pds.example.com')
  assert.equal(identity.signingKey, signing.didKey)
})

test('operations follow the head, signed by any of its rotation keys', () => {
  let log = start
  for (const [i, key] of [server, third, recovery].entries()) {
    log = accept(log, rename(plcHead(log)!.operation, `a${i}.com`, key), i + 1)
  }
  assert.deepEqual(plcData(plcHead(log)!.operation)!.alsoKnownAs, ['at://a2.com'])
  assert.ok(log.every(entry => !entry.nullified))
  refuses('Misordered', () => accept(log, genesis, 5))
  refuses('InvalidSignature', () => accept(log, rename(plcHead(log)!.operation, 'b.com', signing), 5))
  const elsewhere = signPlcOperation<PlcUpdate>({ ...unsignedGenesis, prev: plcCid(end(genesis, third)) }, server)
  refuses('Misordered', () => accept(log, elsewhere, 5))
})

test('new rotation keys count for what follows, not for the operation that brings them', () => {
  const change = plcUpdate(genesis, { rotationKeys: [signing.didKey] })
  refuses('InvalidSignature', () => accept(start, signPlcOperation<PlcUpdate>(change, signing), 1))
  const log = accept(start, signPlcOperation<PlcUpdate>(change, server), 1)
  const head = plcHead(log)!.operation
  refuses('InvalidSignature', () => accept(log, rename(head, 'b.com', server), 2))
  accept(log, rename(head, 'b.com', signing), 2)
})

test('a more powerful key undoes for 72 hours, to the millisecond', () => {
  const evil = rename(genesis, 'evil.com', server)
  const log = accept(accept(start, evil, 1), rename(evil, 'worse.com', third), 2)
  const undone = log.slice(1).map(entry => entry.cid)
  const rescue = rename(genesis, 'alice.com', recovery)
  assert.deepEqual(applyPlcOperation(did, log, rescue, START + 73 * HOUR).nullified, undone)
  refuses('LateRecovery', () => applyPlcOperation(did, log, rescue, START + 73 * HOUR + 1))
  refuses('LateRecovery', () => applyPlcOperation(did, log, rescue, Number.NaN))
  const after = accept(log, rescue, 73)
  assert.deepEqual(
    after.map(entry => entry.nullified),
    [false, true, true, false],
  )
  assert.equal(plcHead(after)!.operation, rescue)
  // What is undone is no place to continue from.
  refuses('Misordered', () => accept(after, rename(log[2]!.operation, 'x.com', recovery), 74))
  verifyPlcLog(did, after)
})

test('an equal or weaker key undoes nothing', () => {
  const log = accept(start, rename(genesis, 'b.com', server), 1)
  for (const key of [server, third, signing])
    refuses('InvalidSignature', () => accept(log, rename(genesis, 'c.com', key), 2))
  const byRecovery = accept(start, rename(genesis, 'b.com', recovery), 1)
  for (const key of keys) refuses('InvalidSignature', () => accept(byRecovery, rename(genesis, 'c.com', key), 2))
})

test('power is measured by the keys at the fork, against the first undone operation', () => {
  const demoted = signPlcOperation<PlcUpdate>(
    plcUpdate(genesis, { rotationKeys: [third.didKey, server.didKey] }),
    server,
  )
  const log = accept(accept(start, demoted, 1), rename(demoted, 'b.com', third), 2)
  assert.deepEqual(
    applyPlcOperation(did, log, rename(genesis, 'c.com', recovery), START + 3 * HOUR).nullified.length,
    2,
  )
  refuses('InvalidSignature', () => accept(log, rename(genesis, 'c.com', third), 3))
  refuses('InvalidSignature', () => accept(log, rename(demoted, 'c.com', recovery), 3))
})

test('nothing follows a tombstone, but it can be undone like anything else', () => {
  const log = accept(start, end(genesis, server), 1)
  assert.equal(plcData(plcHead(log)!.operation), null)
  const beyond = { ...unsignedGenesis, prev: plcHead(log)!.cid }
  refuses('Misordered', () => accept(log, signPlcOperation<PlcUpdate>(beyond, recovery), 2))
  refuses('Misordered', () => plcUpdate(plcHead(log)!.operation, {}))
  refuses('InvalidSignature', () => accept(log, rename(genesis, 'b.com', third), 2))
  refuses('LateRecovery', () => accept(log, rename(genesis, 'b.com', recovery), 74))
  const saved = accept(log, rename(genesis, 'b.com', recovery), 72)
  assert.deepEqual(verifyPlcLog(did, saved), saved[2])
  // A tombstone can recover, too.
  const ended = accept(accept(start, rename(genesis, 'b.com', third), 1), end(genesis, server), 2)
  assert.deepEqual(
    ended.map(entry => entry.nullified),
    [false, true, false],
  )
})

test('a legacy create reads as its modern form, and is not taken any more', () => {
  const unsigned: Unsigned<PlcLegacyCreate> = {
    type: 'create',
    signingKey: server.didKey,
    recoveryKey: recovery.didKey,
    handle: 'alice.example.com',
    service: 'pds.example.com',
    prev: null,
  }
  const create = signPlcOperation<PlcLegacyCreate>(unsigned, server)
  assert.deepEqual(plcData(create), {
    rotationKeys: [recovery.didKey, server.didKey],
    verificationMethods: { atproto: server.didKey },
    alsoKnownAs: ['at://alice.example.com'],
    services: { atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: 'https://pds.example.com' } },
  })
  const owner = plcDidOf(create)
  const log = accept([], create, 0, owner)
  verifyPlcLog(owner, accept(log, rename(create, 'b.com', server), 1, owner))
  refuses('InvalidOperation', () => assertPlcOperation(create))
  const prefixed = { ...create, handle: 'https://b.com', service: 'http://localhost:1' }
  assert.deepEqual(plcData(prefixed)!.alsoKnownAs, ['at://b.com'])
  assert.equal(plcData(prefixed)!.services.atproto_pds!.endpoint, 'http://localhost:1')
})

test('a signature has one form only', () => {
  const raw = unbase64url(genesis.sig)
  const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n // the server's key is P-256
  const highS = new Uint8Array(raw)
  highS.set(unhex((order - BigInt(`0x${hex(raw.slice(32))}`)).toString(16).padStart(64, '0')), 32)
  const last = genesis.sig.at(-1)!
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  const strayBits = genesis.sig.slice(0, -1) + alphabet[alphabet.indexOf(last) + 1]
  assert.equal(plcSigner(genesis, rotationKeys), 1)
  for (const sig of [`${genesis.sig}=`, `${genesis.sig}==`, strayBits, base64url(highS), '', 'ü', ` ${genesis.sig}`]) {
    assert.equal(plcSigner({ ...genesis, sig }, rotationKeys), -1, sig)
  }
  assert.equal(plcSigner(genesis, ['did:key:zNonsense', 'x', server.didKey]), 2)
})

test('every limit is the smaller of the two', () => {
  const sign = (change: object) =>
    signPlcOperation<PlcUpdate>({ ...unsignedGenesis, ...change } as Unsigned<PlcUpdate>, server)
  const many = (n: number, value: unknown) => Object.fromEntries(Array.from({ length: n }, (_, i) => [`id${i}`, value]))
  const service = { type: 'T', endpoint: 'https://a.com' }
  const ed25519 = 'did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK'
  const good: object[] = [
    { rotationKeys: keys.slice(0, 5).map(key => key.didKey) },
    { alsoKnownAs: Array.from({ length: 10 }, (_, i) => `at://${i}.example.com`) },
    { alsoKnownAs: ['x'.repeat(258)] },
    { alsoKnownAs: [], services: {}, verificationMethods: {} },
    { services: many(10, service) },
    { services: { ['i'.repeat(32)]: { type: 't'.repeat(256), endpoint: 'e'.repeat(512) } } },
    { verificationMethods: many(10, ed25519) },
    { verificationMethods: { ['i'.repeat(32)]: `did:key:z${'2'.repeat(247)}` } },
    { prev: plcCid(genesis) },
  ]
  const bad: object[] = [
    { rotationKeys: keys.slice(0, 6).map(key => key.didKey) },
    { rotationKeys: [] },
    { rotationKeys: [server.didKey, server.didKey] },
    { rotationKeys: [ed25519] },
    { rotationKeys: [`did:key:z${base58(server.publicKey.bytes)}`] },
    { alsoKnownAs: Array.from({ length: 11 }, (_, i) => `at://${i}.example.com`) },
    { alsoKnownAs: ['at://a.com', 'at://a.com'] },
    { alsoKnownAs: ['x'.repeat(259)] },
    { services: many(11, service) },
    { services: { ['i'.repeat(33)]: service } },
    { services: { '#atproto_pds': service } },
    { services: { '': service } },
    { services: { a: { ...service, type: 't'.repeat(257) } } },
    { services: { a: { ...service, endpoint: 'e'.repeat(513) } } },
    { services: { a: { ...service, more: 'x' } } },
    { verificationMethods: many(11, ed25519) },
    { verificationMethods: { ['i'.repeat(33)]: ed25519 } },
    { verificationMethods: { a: `did:key:z${'2'.repeat(248)}` } },
    { verificationMethods: { a: 'did:web:a.com' } },
    { verificationMethods: { '#atproto': signing.didKey } },
    { prev: 'bafy' },
    { prev: Cid.ofRaw(new Uint8Array(1)).toString() },
    { more: 1 },
    { services: many(8, { type: 't', endpoint: 'e'.repeat(500) }) },
  ]
  for (const change of good) assert.doesNotThrow(() => assertPlcOperation(sign(change)), JSON.stringify(change))
  for (const change of bad) refuses('InvalidOperation', () => assertPlcOperation(sign(change)))
  refuses('InvalidOperation', () => assertPlcOperation({ ...end(genesis, server), more: 1 }))
})

test('wrong shapes are Malformed', () => {
  const shapes: unknown[] = [null, [], 'x', {}, { type: 'x' }, { ...genesis, sig: 1 }, { ...genesis, prev: undefined }]
  const { prev: _, ...withoutPrev } = genesis
  shapes.push(withoutPrev, { ...genesis, rotationKeys: [1] }, { ...genesis, services: { a: 'x' } })
  shapes.push({ ...genesis, verificationMethods: [] }, { ...end(genesis, server), prev: null })
  shapes.push({ ...genesis, alsoKnownAs: 'x' }, { ...genesis, services: { a: { type: 'x' } } })
  for (const shape of shapes) {
    assert.throws(() => parsePlcOperation(shape), Malformed)
    assert.throws(() => assertPlcOperation(shape), Malformed)
  }
})

test('unknown members of old operations are part of their hash', () => {
  const odd = signPlcOperation<PlcUpdate>({ ...unsignedGenesis, extra: 'x' } as Unsigned<PlcUpdate>, server)
  const owner = plcDidOf(parsePlcOperation(odd))
  assert.notEqual(owner, did)
  assert.equal(accept([], odd, 0, owner).length, 1)
})

test('log entries read back, and are not believed about their CID', () => {
  const [entry] = start
  assert.deepEqual(parsePlcEntry(JSON.parse(JSON.stringify(entry))), entry)
  const { nullified: _, ...sequenced } = entry!
  assert.deepEqual(parsePlcEntry({ ...sequenced, type: 'sequenced_op', seq: 4 }), entry)
  const bad: object[] = [{ cid: 'bafy' }, { did: 'x' }, { createdAt: 'x' }, { nullified: 1 }, { operation: null }]
  for (const change of bad) assert.throws(() => parsePlcEntry({ ...entry, ...change }), Malformed)
})

test('a log that was tampered with does not verify', () => {
  const log = accept(accept(start, rename(genesis, 'b.com', server), 1), rename(genesis, 'c.com', recovery), 2)
  assert.equal(verifyPlcLog(did, log).cid, log[2]!.cid)
  const change = (i: number, with_: Partial<PlcEntry>) =>
    log.map((entry, j) => (i === j ? { ...entry, ...with_ } : entry))
  refuses('LogMismatch', () => verifyPlcLog(did, []))
  refuses('LogMismatch', () => verifyPlcLog(did, change(1, { nullified: false })))
  refuses('LogMismatch', () => verifyPlcLog(did, change(2, { nullified: true })))
  refuses('LogMismatch', () => verifyPlcLog(did, change(1, { cid: log[0]!.cid })))
  refuses('LogMismatch', () => verifyPlcLog(did, change(0, { createdAt: '2027-01-01T00:00:00Z' })))
  refuses('LogMismatch', () => verifyPlcLog(did, change(0, { createdAt: 'soon' })))
  refuses('LogMismatch', () => verifyPlcLog(did, change(0, { did: 'did:plc:44ybard66vv44zksje25o7dz' as Did })))
  refuses('LateRecovery', () => verifyPlcLog(did, change(2, { createdAt: '2026-01-05T00:00:00Z' })))
  refuses('Misordered', () => verifyPlcLog(did, log.slice(1)))
})

/**
 * The slow twin knows who signed what, since it made it, and keeps the history as a plain list: no signatures, no CIDs.
 */
interface Known {
  place: number
  signer: number
  hour: number
  tombstone: boolean
}

test('random histories end as the rules in plain words say', () => {
  const attempt = fc.record({
    signer: fc.nat(3),
    prev: fc.nat(5),
    hours: fc.constantFrom(0, 1, 40, 72, 80),
    tombstone: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(attempt, { maxLength: 8 }), attempts => {
      let log = start
      let known: Known[] = [{ place: 0, signer: 1, hour: 0, tombstone: false }]
      const made: PlcOperation[] = [genesis]
      let hour = 0
      for (const { signer, prev, hours, tombstone } of attempts) {
        hour += hours
        const place = prev % made.length
        const last = made[place]!
        const kept = known.findIndex(k => k.place === place)
        const undone = kept < 0 ? [] : known.slice(kept + 1)
        const rightful = undone.length === 0 ? signer <= 2 : signer < undone[0]!.signer
        const allowed =
          kept >= 0 && !known[kept]!.tombstone && rightful && (undone.length === 0 || hour - undone[0]!.hour <= 72)
        const unsigned = tombstone
          ? plcTombstone(last)
          : { ...unsignedGenesis, alsoKnownAs: [`at://n${made.length}.com`], prev: plcCid(last) }
        const operation = signPlcOperation<PlcOperation>(unsigned as Unsigned<PlcOperation>, keys[signer]!)
        made.push(operation)
        if (!allowed) {
          assert.throws(() => accept(log, operation, hour), Refused)
          continue
        }
        log = accept(log, operation, hour)
        known = [...known.slice(0, kept + 1), { place: made.length - 1, signer, hour, tombstone }]
      }
      const expected = known.map(k => plcCid(made[k.place]!))
      assert.deepEqual(
        log.filter(entry => !entry.nullified).map(entry => entry.cid),
        expected,
      )
      assert.equal(verifyPlcLog(did, log).cid, expected.at(-1))
    }),
    { numRuns: 60 },
  )
})

test('anything at all ends in an operation, Malformed or Refused', () => {
  const json = fc.jsonValue({ maxDepth: 2 })
  const near = fc
    .record({
      member: fc.constantFrom(...Object.keys(genesis)),
      value: fc.oneof(
        json,
        fc.uint16Array({ maxLength: 20 }).map(codes => String.fromCharCode(...codes)),
      ),
    })
    .map(({ member, value }) => ({ ...genesis, [member]: value }))
  const extra = json.map(value => ({ ...genesis, extra: value }))
  const runs = [
    (value: unknown) => assertPlcOperation(value),
    (value: unknown) => applyPlcOperation(did, [], parsePlcOperation(value), START),
    (value: unknown) => applyPlcOperation(did, start, parsePlcOperation(value), START),
    (value: unknown) => parsePlcEntry({ ...start[0], operation: value }),
    (value: unknown) => parsePlcEntry(value),
  ]
  fc.assert(
    fc.property(fc.oneof(json, near, extra), value => {
      for (const run of runs) {
        try {
          run(value)
        } catch (error) {
          assert.ok(error instanceof Malformed || error instanceof Refused, String(error))
        }
      }
    }),
    { numRuns: 80 },
  )
})
