/** Puts the directory together. */
import { join } from 'node:path'
import { openDb, type SqliteDb } from '@millisky/server/db/db'
import { Fetcher } from '@millisky/server/fetch'
import { createHttp, listen } from '@millisky/server/http'
import { PlcExport } from '@millisky/server/identity/plc-export'
import { createLog, type Logger } from '@millisky/server/trace'
import { addApi } from './api.ts'
import type { PlcSettings } from './config.ts'
import { Directory, migrations, type PlcTables } from './directory.ts'
import { ExportStream } from './export-stream.ts'
import { Replica } from './replica.ts'

export interface PlcParts {
  log?: Logger
  version?: string
  /** Milliseconds since the epoch. */
  now?: () => number
}

export interface Plc {
  /** Where it listens, without a slash at the end; known after {@link listen}. */
  readonly url: string
  readonly directory: Directory
  listen(): Promise<void>
  close(): Promise<void>
}

/** Opens the database; {@link Plc.listen} then begins to serve. */
export async function createPlc(settings: PlcSettings, parts: PlcParts = {}): Promise<Plc> {
  const { log = createLog({ name: 'plc', level: settings.logLevel }), version = '0.0.0', now = Date.now } = parts
  const db = await openDb<PlcTables>(settings.db ?? join(settings.dataDir, 'plc.sqlite'), { migrations, log })
  if (db.kind !== 'sqlite') {
    await db.close()
    throw new Error('The directory keeps its operations in SQLite: PLC_DB has to be a path or :memory:')
  }
  const directory = new Directory(db as SqliteDb<PlcTables>, { unlimited: settings.devMode, now })
  let following: ReturnType<typeof follow> | null = null
  try {
    const { replicaOf } = settings
    if (replicaOf) following = follow(db as SqliteDb<PlcTables>, directory, replicaOf, { log, version, now })
  } catch (error) {
    await db.close()
    throw error
  }
  const http = createHttp({ log, product: `millisky-plc/${version}` })
  const stream = new ExportStream({
    directory,
    windowMs: settings.streamWindow,
    consumersMax: settings.streamsMax,
    now,
  })
  addApi(http, directory, log, { version, replica: following })
  stream.attach(http.server, '/export/stream')
  let url = ''
  let closing: Promise<void> | null = null
  return {
    directory,
    get url() {
      return url
    },
    async listen() {
      url = await listen(http, { port: settings.port, host: settings.bind })
      log.info({ url, operations: directory.head }, 'the did:plc directory is listening')
      await following?.follower.start()
    },
    close() {
      closing ??= (async () => {
        await following?.follower.stop()
        await following?.fetcher.close()
        await stream.close()
        await http.close()
        await db.close()
      })()
      return closing
    },
  }
}

/** Keeps the directory a replica of another one. The operator names that, so that it may be anywhere. */
function follow(db: SqliteDb<PlcTables>, directory: Directory, of: string, { log, version, now }: Required<PlcParts>) {
  const userAgent = `millisky-plc/${version}`
  const fetcher = new Fetcher({ allowPrivate: true, userAgent })
  const origin = of.replace(/\/+$/, '')
  const replica = new Replica({
    db,
    directory,
    origin,
    onSkipped: line => log.error(line, 'an operation of the followed directory breaks the rules and was skipped'),
  })
  const follower = new PlcExport({
    url: origin,
    fetcher,
    userAgent,
    sink: replica,
    now,
    onTrouble: (problem, state) =>
      log[state === 'waiting' ? 'warn' : 'error']({ problem, state }, 'the directory cannot be followed; trying again'),
    onState: state => log.info({ state, seq: follower.position.seq }, 'replica'),
  })
  const state = () => {
    const { seq, trueAt } = follower.position
    return { state: follower.state, seq, trueAt: follower.trueAt ?? trueAt, skipped: replica.skipped }
  }
  return { of: origin, follower, fetcher, state }
}
