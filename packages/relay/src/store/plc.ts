/** What is kept of a did:plc directory's export: how far it was read, and what is needed to judge the next operations. */
import type { Did } from '@millisky/core/syntax'
import type { Db, SqliteDb } from '@millisky/server/db/db'
import type { ExportPosition } from '@millisky/server/identity/plc-export'
import { sql } from 'kysely'
import { packDid, type SqlIdentities } from './identities.ts'
import type { RelaySchema } from './schema.ts'
import type { StoredIdentity } from './store.ts'

/** Rows in one statement of PostgreSQL. */
const CHUNK = 500
const POSITION = 'plc-export'

/** A DID with an operation that breaks the rules: what the export says of it is not believed from then on. */
export interface RefusedDid {
  did: Did
  seq: number
  reason: string
}

export interface PlcChange {
  /** With the origin of the directory, since another one is read from its beginning. */
  origin: string
  position: ExportPosition
  /** Each DID once; see core's `packPlcChain`. */
  chains: ReadonlyMap<Did, Uint8Array>
  /** Each DID once. */
  identities: readonly StoredIdentity[]
  /** DIDs that have ended or are refused. */
  gone: readonly Did[]
  refused: readonly RefusedDid[]
}

export interface PlcStore {
  /** Null before the first change, and for another directory. */
  position(origin: string): Promise<ExportPosition | null>
  /** Packed chains of those that have one. */
  chains(dids: readonly Did[]): Promise<Map<Did, Uint8Array>>
  refused(): Promise<Did[]>
  /** All in one transaction. An identity that is known to be newer stays. */
  save(change: PlcChange): Promise<void>
  /** Forgets everything of it except identities. */
  clear(): Promise<void>
}

export class SqlPlc implements PlcStore {
  readonly #db: Db<RelaySchema>
  readonly #identities: SqlIdentities
  readonly #statements: ReturnType<typeof prepare>

  constructor(db: Db<RelaySchema>, identities: SqlIdentities) {
    this.#db = db
    this.#identities = identities
    this.#statements = prepare(db)
  }

  async position(origin: string): Promise<ExportPosition | null> {
    const setting = this.#db.kysely.selectFrom('setting').select('value').where('name', '=', POSITION)
    const row = await setting.executeTakeFirst()
    if (!row) return null
    const { origin: its, ...position } = JSON.parse(row.value) as ExportPosition & { origin: string }
    return its === origin ? position : null
  }

  async chains(dids: readonly Did[]): Promise<Map<Did, Uint8Array>> {
    const found = new Map<Did, Uint8Array>()
    if (this.#db.kind === 'sqlite') {
      for (const did of dids) {
        const row = (this.#db as SqliteDb<RelaySchema>).getSync(this.#statements.chain, [packDid(did)])
        if (row) found.set(did, row.chain)
      }
      return found
    }
    const asked = new Map(dids.map(did => [textOf(packDid(did)), did]))
    for (let at = 0; at < dids.length; at += CHUNK) {
      const some = dids.slice(at, at + CHUNK).map(packDid)
      const rows = await this.#db.kysely.selectFrom('plc_chain').selectAll().where('did', 'in', some).execute()
      for (const { did, chain } of rows) found.set(asked.get(textOf(did))!, chain)
    }
    return found
  }

  async refused(): Promise<Did[]> {
    return (await this.#db.kysely.selectFrom('plc_refused').select('did').execute()).map(({ did }) => did as Did)
  }

  async save({ origin, position, chains, identities, gone, refused }: PlcChange): Promise<void> {
    const { putChain, refuse, savePosition } = this.#statements
    const where = JSON.stringify({ origin, ...position })
    if (this.#db.kind === 'sqlite') {
      await (this.#db as SqliteDb<RelaySchema>).transactionGrouped(tx => {
        for (const [did, chain] of chains) tx.run(putChain, [packDid(did), chain])
        this.#identities.putSync(tx, identities)
        for (const did of gone) this.#identities.deleteSync(tx, did)
        for (const { did, seq, reason } of refused) tx.run(refuse, [did, seq, reason])
        tx.run(savePosition, [POSITION, where])
      })
      return
    }
    await this.#db.transaction(async tx => {
      const rows = Array.from(chains, ([did, chain]) => sql`(${packDid(did)}, ${chain})`)
      for (let at = 0; at < rows.length; at += CHUNK) {
        await sql`insert into plc_chain (did, chain) values ${sql.join(rows.slice(at, at + CHUNK))}
          on conflict (did) do update set chain = excluded.chain`.execute(tx.kysely)
      }
      await this.#identities.putIn(tx, identities)
      if (gone.length > 0) {
        await tx.kysely.deleteFrom('known_identity').where('did', 'in', gone.map(packDid)).execute()
      }
      for (const { did, seq, reason } of refused) await tx.run(refuse, [did, seq, reason])
      await tx.run(savePosition, [POSITION, where])
    })
  }

  async clear(): Promise<void> {
    await this.#db.transaction(async ({ kysely }) => {
      await kysely.deleteFrom('plc_chain').execute()
      await kysely.deleteFrom('plc_refused').execute()
      await kysely.deleteFrom('setting').where('name', '=', POSITION).execute()
    })
  }
}

const textOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1')

function prepare(db: Db<RelaySchema>) {
  const { kysely } = db
  return {
    chain: db.prepare((did: Uint8Array) => kysely.selectFrom('plc_chain').select('chain').where('did', '=', did)),
    putChain: db.prepare(
      (did: Uint8Array, chain: Uint8Array) =>
        sql`insert into plc_chain (did, chain) values (${did}, ${chain}) on conflict (did) do update set chain = excluded.chain`,
    ),
    refuse: db.prepare((did: string, seq: number, reason: string) =>
      kysely
        .insertInto('plc_refused')
        .values({ did, seq, reason })
        .onConflict(conflict => conflict.doNothing()),
    ),
    savePosition: db.prepare(
      (name: string, value: string) =>
        sql`insert into setting (name, value) values (${name}, ${value}) on conflict (name) do update set value = excluded.value`,
    ),
  }
}
