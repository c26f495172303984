/**
 * Identities on disk, about a hundred bytes each: binary DIDs and keys, numbers for PDSs, seconds for times.
 *
 * Rows are found by the binary DID: the 15 bytes of a did:plc, the text of any other. A text that were those 15 bytes would
 * have to be looked for among 2^120.
 */
import { unbase32, utf8 } from '@millisky/core/bytes'
import { packDidKey, unpackDidKey } from '@millisky/core/key-bytes'
import { type Did, isPlcDid } from '@millisky/core/syntax'
import type { Awaitable, Db, Executor, SqliteDb, SyncTx } from '@millisky/server/db/db'
import { sql } from 'kysely'
import type { RelaySchema } from './schema.ts'
import type { IdentityStore, StoredIdentity } from './store.ts'

/** Rows in one statement of PostgreSQL. */
const CHUNK = 500
/** Origins remembered with their numbers. */
const ORIGINS_MAX = 20_000
/** Nearly all handles end like this; kept as a dot at the end, which no handle has. */
const COMMON_DOMAIN = '.bsky.social'

/** What verification needs of an identity, without the DID. */
interface Row {
  did: Uint8Array
  /** Seconds since 1970. */
  at: number
  key: Uint8Array | null
  origin: number | null
  handle: string | null
}

export function packDid(did: Did): Uint8Array {
  return isPlcDid(did) ? unbase32(did.slice(8)) : utf8(did)
}

const packHandle = (handle: string) =>
  handle.endsWith(COMMON_DOMAIN) ? handle.slice(0, 1 - COMMON_DOMAIN.length) : handle
const unpackHandle = (text: string) => (text.endsWith('.') ? text.slice(0, -1) + COMMON_DOMAIN : text)

/** Numbers of origins, the ones met last in memory. Learnt only when they are durable. */
class Origins {
  readonly #ids = new Map<string, number>()
  readonly #texts = new Map<number, string>()

  id(origin: string): number | undefined {
    return this.#ids.get(origin)
  }

  text(id: number): string | undefined {
    return this.#texts.get(id)
  }

  learn(id: number, origin: string): void {
    if (this.#ids.size >= ORIGINS_MAX) {
      this.#ids.clear()
      this.#texts.clear()
    }
    this.#ids.set(origin, id)
    this.#texts.set(id, origin)
  }
}

/** What is older changes nothing. */
const REPLACE = sql`on conflict (did) do update set at = excluded.at, key = excluded.key, origin = excluded.origin,
  handle = excluded.handle where excluded.at >= known_identity.at`

function prepare(db: Db<RelaySchema>) {
  const { kysely } = db
  return {
    byDid: db.prepare((did: Uint8Array) => kysely.selectFrom('known_identity').selectAll().where('did', '=', did)),
    originOf: db.prepare((id: number) => kysely.selectFrom('origin').selectAll().where('id', '=', id)),
    originBy: db.prepare((origin: string) => kysely.selectFrom('origin').selectAll().where('origin', '=', origin)),
    addOrigin: db.prepare((origin: string) => kysely.insertInto('origin').values({ origin })),
    put: db.prepare(
      (did: Uint8Array, at: number, key: Uint8Array | null, origin: number | null, handle: string | null) =>
        sql`insert into known_identity (did, at, key, origin, handle)
          values (${did}, ${at}, ${key}, ${origin}, ${handle}) ${REPLACE}`,
    ),
    remove: db.prepare((did: Uint8Array) => kysely.deleteFrom('known_identity').where('did', '=', did)),
  }
}

type Packed = [did: Uint8Array, at: number, key: Uint8Array | null, origin: number | null, handle: string | null]

const packed = ({ did, at, key, handle }: StoredIdentity, origin: number | null): Packed => [
  packDid(did),
  Math.floor(at / 1_000),
  key === null ? null : packDidKey(key),
  origin,
  handle === null ? null : packHandle(handle),
]

const unpacked = (did: Did, { at, key, handle }: Omit<Row, 'did' | 'origin'>, pds: string | null): StoredIdentity => ({
  did,
  at: at * 1_000,
  key: key && unpackDidKey(key),
  pds,
  handle: handle && unpackHandle(handle),
})

export class SqlIdentities implements IdentityStore {
  readonly isImmediate: boolean
  readonly #db: Db<RelaySchema>
  readonly #statements: ReturnType<typeof prepare>
  readonly #origins = new Origins()

  constructor(db: Db<RelaySchema>) {
    this.#db = db
    this.isImmediate = db.kind === 'sqlite'
    this.#statements = prepare(db)
  }

  load(dids: readonly Did[]): Awaitable<StoredIdentity[]> {
    return this.isImmediate ? this.#loadSync(this.#db as SqliteDb<RelaySchema>, dids) : this.#load(dids)
  }

  async put(identities: readonly StoredIdentity[]): Promise<void> {
    if (this.isImmediate) {
      await (this.#db as SqliteDb<RelaySchema>).transactionGrouped(tx => this.putSync(tx, identities))
    } else await this.#db.transaction(tx => this.putIn(tx, identities))
  }

  async delete(did: Did): Promise<void> {
    await this.#db.run(this.#statements.remove, [packDid(did)])
  }

  /** As {@link put}, in a transaction of SQLite. */
  putSync(tx: SyncTx, identities: readonly StoredIdentity[]): void {
    const fresh = new Map<string, number>()
    const { originBy, addOrigin, put } = this.#statements
    const idOf = (origin: string) => {
      const known = this.#origins.id(origin) ?? fresh.get(origin)
      if (known !== undefined) return known
      if (!tx.get(originBy, [origin])) tx.run(addOrigin, [origin])
      const { id } = tx.get(originBy, [origin])!
      fresh.set(origin, id)
      return id
    }
    for (const identity of identities) {
      tx.run(put, packed(identity, identity.pds === null ? null : idOf(identity.pds)))
    }
    tx.onCommit(() => {
      for (const [origin, id] of fresh) this.#origins.learn(id, origin)
    })
  }

  /** As {@link put}, in a transaction of PostgreSQL. No DID may occur twice. */
  async putIn({ kysely }: Executor<RelaySchema>, identities: readonly StoredIdentity[]): Promise<void> {
    for (let at = 0; at < identities.length; at += CHUNK) {
      const chunk = identities.slice(at, at + CHUNK)
      const texts = [...new Set(chunk.flatMap(({ pds }) => pds ?? []))].sort()
      const ids = new Map<string, number>()
      if (texts.length > 0) {
        const add = kysely.insertInto('origin').values(texts.map(origin => ({ origin })))
        await add.onConflict(conflict => conflict.doNothing()).execute()
        const found = await kysely.selectFrom('origin').selectAll().where('origin', 'in', texts).execute()
        for (const { id, origin } of found) ids.set(origin, id)
      }
      const rows = chunk.map(
        identity => sql`(${sql.join(packed(identity, identity.pds === null ? null : ids.get(identity.pds)!))})`,
      )
      await sql`insert into known_identity (did, at, key, origin, handle) values ${sql.join(rows)} ${REPLACE}`.execute(
        kysely,
      )
    }
  }

  deleteSync(tx: SyncTx, did: Did): void {
    tx.run(this.#statements.remove, [packDid(did)])
  }

  #loadSync(db: SqliteDb<RelaySchema>, dids: readonly Did[]): StoredIdentity[] {
    const textOf = (id: number) => {
      const known = this.#origins.text(id)
      if (known !== undefined) return known
      const { origin } = db.getSync(this.#statements.originOf, [id])!
      this.#origins.learn(id, origin)
      return origin
    }
    return dids.flatMap(did => {
      const row = db.getSync(this.#statements.byDid, [packDid(did)])
      return row ? [unpacked(did, row, row.origin === null ? null : textOf(row.origin))] : []
    })
  }

  async #load(dids: readonly Did[]): Promise<StoredIdentity[]> {
    const textOf = (did: Uint8Array) => Buffer.from(did).toString('latin1')
    const asked = new Map(dids.map(did => [textOf(packDid(did)), did]))
    const rows = await this.#db.kysely
      .selectFrom('known_identity')
      .leftJoin('origin', 'origin.id', 'known_identity.origin')
      .select(['did', 'at', 'key', 'handle', 'origin.origin as pds'])
      .where('did', 'in', dids.map(packDid))
      .execute()
    return rows.map(row => unpacked(asked.get(textOf(row.did))!, row, row.pds))
  }
}
