/** The store over SQL: SQLite or PostgreSQL. */
import { fromLatin1, latin1 } from '@millisky/core/bytes'
import type { Did, Tid } from '@millisky/core/syntax'
import type { Policy } from '@millisky/core/verify'
import { type Db, isUniqueViolation, type SqliteDb } from '@millisky/server/db/db'
import { type Insertable, type Selectable, sql, type Updateable } from 'kysely'
import { createCheckpointStore, createDirectoryStore, prepareDirectoryFold } from './directory.ts'
import { SqlIdentities } from './identities.ts'
import { createOutboxStore } from './outbox.ts'
import { SqlPlc } from './plc.ts'
import type { AccountTable, HostTable, RelaySchema } from './schema.ts'
import type {
  AccountStore,
  AuditStore,
  DomainBanStore,
  FoldedHost,
  FoldStore,
  HostPatch,
  HostRecord,
  HostStatus,
  HostStore,
  NewHost,
  RelayStore,
  SettingStore,
  StoredAccount,
} from './store.ts'

/** Rows in one statement of PostgreSQL; each is seven parameters of 65,535. */
const CHUNK = 500
const WATERMARK = 'fold-watermark'
const CURSORS_AT = 'fold-cursors-at'

export function createSqlStore(db: Db<RelaySchema>): RelayStore {
  const identities = new SqlIdentities(db)
  const ping = db.prepare(db.kysely.selectFrom('setting').select('name').limit(1))
  return {
    hosts: createHostStore(db),
    accounts: createAccountStore(db),
    fold: createFoldStore(db),
    bans: createBanStore(db),
    settings: createSettingStore(db),
    audit: createAuditStore(db),
    outbox: createOutboxStore(db),
    directory: createDirectoryStore(db),
    checkpoints: createCheckpointStore(db),
    identities,
    plc: new SqlPlc(db, identities),
    async ping() {
      await db.get(ping, [])
    },
    close: () => db.close(),
  }
}

// Hosts

function hostOf(row: Selectable<HostTable>): HostRecord {
  return {
    id: row.id,
    hostname: row.hostname,
    noTls: row.no_tls === 1,
    status: row.status as HostStatus,
    reason: row.reason,
    statusAt: row.status_at,
    createdAt: row.created_at,
    byAdmin: row.by_admin === 1,
    cursor: row.cursor,
    policy: row.policy as Policy,
    pinned: row.pinned === 1,
    streak: row.streak,
    accounts: row.accounts,
    accountLimit: row.account_limit,
    perSecond: row.per_second,
    perHour: row.per_hour,
    perDay: row.per_day,
    growth: row.growth,
    growthAt: row.growth_at || row.created_at,
    history: JSON.parse(row.history) as HostRecord['history'],
  }
}

function rowOf(host: NewHost): Insertable<HostTable> {
  return {
    hostname: host.hostname,
    no_tls: Number(host.noTls),
    status: host.status,
    reason: host.reason,
    status_at: host.statusAt,
    created_at: host.createdAt,
    by_admin: Number(host.byAdmin),
    cursor: host.cursor,
    policy: host.policy,
    pinned: Number(host.pinned),
    streak: host.streak,
    accounts: host.accounts,
    account_limit: host.accountLimit,
    per_second: host.perSecond,
    per_hour: host.perHour,
    per_day: host.perDay,
    growth: host.growth,
    growth_at: host.growthAt,
    history: JSON.stringify(host.history),
  }
}

function changedColumns(patch: HostPatch): Updateable<HostTable> {
  const { noTls, byAdmin, pinned, history } = patch
  return {
    no_tls: noTls === undefined ? undefined : Number(noTls),
    status: patch.status,
    reason: patch.reason,
    status_at: patch.statusAt,
    by_admin: byAdmin === undefined ? undefined : Number(byAdmin),
    cursor: patch.cursor,
    policy: patch.policy,
    pinned: pinned === undefined ? undefined : Number(pinned),
    account_limit: patch.accountLimit,
    per_second: patch.perSecond,
    per_hour: patch.perHour,
    per_day: patch.perDay,
    growth: patch.growth,
    growth_at: patch.growthAt,
    history: history === undefined ? undefined : JSON.stringify(history),
  }
}

function createHostStore({ kysely }: Db<RelaySchema>): HostStore {
  return {
    async all() {
      return (await kysely.selectFrom('host').selectAll().orderBy('id').execute()).map(hostOf)
    },
    async create(host) {
      return hostOf(await kysely.insertInto('host').values(rowOf(host)).returningAll().executeTakeFirstOrThrow())
    },
    async update(id, patch) {
      const set = changedColumns(patch)
      if (Object.values(set).every(value => value === undefined)) return
      await kysely.updateTable('host').set(set).where('id', '=', id).execute()
    },
    async countSince(time) {
      const count = kysely.selectFrom('host').select(eb => eb.fn.countAll().as('n'))
      const { n } = await count.where('created_at', '>=', time).where('by_admin', '=', 0).executeTakeFirstOrThrow()
      return Number(n)
    },
  }
}

// Accounts

function accountOf(row: Selectable<AccountTable>): StoredAccount {
  return {
    did: row.did as Did,
    host: row.host,
    rev: row.rev as Tid | null,
    data: row.data && latin1(row.data),
    commit: row.cid && latin1(row.cid),
    active: row.active === 1,
    status: row.status,
    local: row.local,
  }
}

function createAccountStore(db: Db<RelaySchema>): AccountStore {
  const { kysely } = db
  const byDid = db.prepare((did: string) => kysely.selectFrom('account').selectAll().where('did', '=', did))
  return {
    async load(dids) {
      if (db.kind === 'sqlite') {
        const found: StoredAccount[] = []
        for (const did of dids) {
          const row = (db as SqliteDb<RelaySchema>).getSync(byDid, [did])
          if (row) found.push(accountOf(row))
        }
        return found
      }
      const rows = await kysely.selectFrom('account').selectAll().where('did', 'in', dids).execute()
      return rows.map(accountOf)
    },
    async setLocal(did, local) {
      await kysely
        .insertInto('account')
        .values({ did, host: null, rev: null, data: null, cid: null, active: 1, status: null, local })
        .onConflict(conflict => conflict.column('did').doUpdateSet({ local }))
        .execute()
    },
    async list(after, limit) {
      const rows = kysely.selectFrom('account').selectAll().where('did', '>', after).orderBy('did').limit(limit)
      return (await rows.execute()).map(accountOf)
    },
    async listLocal(local, after, limit) {
      const rows = kysely.selectFrom('account').selectAll().where('local', 'is not', null).where('did', '>', after)
      return (await rows.where('local', '=', local).orderBy('did').limit(limit).execute()).map(accountOf)
    },
  }
}

// The fold

/** The newer row wins, except for what was said here. */
const TAKE_OVER = sql`on conflict (did) do update set host = excluded.host, rev = excluded.rev, data = excluded.data,
  cid = excluded.cid, active = excluded.active, status = excluded.status`
const COLUMNS = sql`(did, host, rev, data, cid, active, status)`

type Row = [
  did: string,
  host: number | null,
  rev: string | null,
  data: Uint8Array | null,
  cid: Uint8Array | null,
  active: number,
  status: string | null,
]
const foldedRow = ({ did, host, rev, data, commit, active, status }: StoredAccount): Row => [
  did,
  host,
  rev,
  data === null ? null : fromLatin1(data),
  commit === null ? null : fromLatin1(commit),
  Number(active),
  status,
]

function createFoldStore(db: Db<RelaySchema>): FoldStore {
  const { kysely } = db
  const account = db.prepare(
    (did: Row[0], host: Row[1], rev: Row[2], data: Row[3], cid: Row[4], active: Row[5], status: Row[6]) =>
      sql`insert into account ${COLUMNS} values (${did}, ${host}, ${rev}, ${data}, ${cid}, ${active}, ${status}) ${TAKE_OVER}`,
  )
  const host = db.prepare((cursor: number | null, streak: number, accounts: number, id: number) =>
    kysely.updateTable('host').set({ cursor, streak, accounts }).where('id', '=', id),
  )
  const setting = db.prepare(
    (name: string, value: string) =>
      sql`insert into setting (name, value) values (${name}, ${value}) on conflict (name) do update set value = excluded.value`,
  )
  const collections = prepareDirectoryFold(db)
  const hostRow = ({ id, cursor, streak, accounts }: FoldedHost) => [cursor, streak, accounts, id] as const
  const read = async (name: string): Promise<number> => {
    const row = await kysely.selectFrom('setting').select('value').where('name', '=', name).executeTakeFirst()
    return row ? Number(row.value) : 0
  }
  return {
    watermark: () => read(WATERMARK),
    cursorsAt: () => read(CURSORS_AT),
    async save({ watermark, cursorsAt, accounts, hosts, directory = [] }) {
      if (db.kind === 'sqlite') {
        await (db as SqliteDb<RelaySchema>).transactionGrouped(tx => {
          for (const stored of accounts) tx.run(account, foldedRow(stored))
          for (const folded of hosts) tx.run(host, [...hostRow(folded)])
          collections.saveSync(tx, directory)
          tx.run(setting, [WATERMARK, String(watermark)])
          if (cursorsAt !== undefined) tx.run(setting, [CURSORS_AT, String(cursorsAt)])
        })
        return
      }
      await db.transaction(async tx => {
        for (let at = 0; at < accounts.length; at += CHUNK) {
          const rows = accounts.slice(at, at + CHUNK).map(stored => sql`(${sql.join(foldedRow(stored))})`)
          await sql`insert into account ${COLUMNS} values ${sql.join(rows)} ${TAKE_OVER}`.execute(tx.kysely)
        }
        for (const folded of hosts) await tx.run(host, [...hostRow(folded)])
        await collections.save(tx, directory)
        await tx.run(setting, [WATERMARK, String(watermark)])
        if (cursorsAt !== undefined) await tx.run(setting, [CURSORS_AT, String(cursorsAt)])
      })
    },
  }
}

// Bans and settings

function createBanStore({ kysely }: Db<RelaySchema>): DomainBanStore {
  return {
    async all() {
      const rows = await kysely.selectFrom('domain_ban').select('domain').orderBy('domain').execute()
      return rows.map(row => row.domain)
    },
    async add(domain, at) {
      try {
        await kysely.insertInto('domain_ban').values({ domain, created_at: at }).execute()
        return true
      } catch (error) {
        if (isUniqueViolation(error)) return false
        throw error
      }
    },
    async remove(domain) {
      const { numDeletedRows } = await kysely.deleteFrom('domain_ban').where('domain', '=', domain).executeTakeFirst()
      return numDeletedRows > 0n
    },
  }
}

function createAuditStore({ kysely }: Db<RelaySchema>): AuditStore {
  return {
    async add(entry) {
      await kysely.insertInto('audit').values(entry).execute()
    },
    async list(before, limit) {
      const all = kysely.selectFrom('audit').selectAll().orderBy('id', 'desc').limit(limit)
      return await (before === null ? all : all.where('id', '<', before)).execute()
    },
    async prune(before, entriesMax) {
      const newest = await kysely
        .selectFrom('audit')
        .select('id')
        .orderBy('id', 'desc')
        .offset(entriesMax)
        .limit(1)
        .execute()
      const last = newest[0]?.id ?? 0
      const old = kysely.deleteFrom('audit').where(eb => eb.or([eb('at', '<', before), eb('id', '<=', last)]))
      return Number((await old.executeTakeFirst()).numDeletedRows)
    },
  }
}

function createSettingStore({ kysely }: Db<RelaySchema>): SettingStore {
  return {
    async get(name) {
      const row = await kysely.selectFrom('setting').select('value').where('name', '=', name).executeTakeFirst()
      return row?.value ?? null
    },
    async set(name, value) {
      await kysely
        .insertInto('setting')
        .values({ name, value })
        .onConflict(conflict => conflict.column('name').doUpdateSet({ value }))
        .execute()
    },
  }
}
