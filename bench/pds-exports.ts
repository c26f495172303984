/**
 * What relays and clients read of repositories and write of blobs, over HTTP: sync.getRecord, getRepo, uploadBlob and getBlob.
 * The reference runs beside ours where MILLISKY_REFERENCE_PDS names its folder. A repository is the same everywhere, so the
 * ratio of getRepo calls is that of bytes.
 */
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Report } from './codec.ts'
import { Client, type Load, loadServers } from './http-load.ts'
import { machine, printTable } from './measure.ts'
import { fill, POST, type Server, startOurs, startPlc, startReference, type User } from './pds-servers.ts'

const ACCOUNTS = 6
const RECORDS = 3_000
const BLOB_BYTES = 200_000

const get = (method: string, query: string, headers = '') =>
  `GET /xrpc/${method}?${query} HTTP/1.1\r\nhost: pds\r\n${headers}\r\n`

const blob = randomBytes(BLOB_BYTES)

/** Other bytes each time, so that none of them is there already. */
function uploadBlob({ token }: User, n: number): Uint8Array {
  const headers = `authorization: Bearer ${token}\r\ncontent-type: application/octet-stream\r\ncontent-length: ${BLOB_BYTES}`
  const head = Buffer.from(`POST /xrpc/com.atproto.repo.uploadBlob HTTP/1.1\r\nhost: pds\r\n${headers}\r\n\r\n`)
  blob.writeUInt32LE(n)
  return Buffer.concat([head, blob])
}

const LOADS: Load<User>[] = [
  {
    name: 'sync.getRecord',
    calls: 6_000,
    request: ({ did, rkeys }, n) =>
      get('com.atproto.sync.getRecord', `did=${did}&collection=${POST}&rkey=${rkeys[(n * 13) % rkeys.length]}`),
  },
  { name: 'uploadBlob of 200 KB', calls: 1_000, connections: 16, request: uploadBlob },
  {
    name: `getRepo of ${RECORDS} records`,
    calls: 600,
    connections: 4,
    request: ({ did }) => get('com.atproto.sync.getRepo', `did=${did}`),
  },
]

/** How large an export is, plain and compressed. */
async function sizes(server: Server, { did }: User): Promise<string> {
  const client = new Client(Number(new URL(server.url).port))
  const found: string[] = []
  for (const encoding of ['', 'gzip', 'zstd']) {
    const header = encoding && `accept-encoding: ${encoding}\r\n`
    const { length } = await client.call(get('com.atproto.sync.getRepo', `did=${did}`, header))
    found.push(`${encoding || 'plain'} ${(length / 1e6).toFixed(2)} MB`)
  }
  client.close()
  return found.join(', ')
}

export async function run(report: Report): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-bench-'))
  const plc = await startPlc()
  const servers: { server: Server; users: User[] }[] = []
  try {
    for (const server of [
      await startOurs(join(folder, 'ours'), plc),
      await startReference(join(folder, 'reference'), plc),
    ]) {
      if (server) servers.push({ server, users: await fill(server, ACCOUNTS, RECORDS) })
    }
    console.log(`one export: ${await sizes(servers[0]!.server, servers[0]!.users[0]!)}`)
    for (const load of LOADS) {
      report(`PDS, ${load.name} over HTTP, calls per CPU-second`, await loadServers(servers, load))
    }
    console.log(`memory after that: ${(await servers[0]!.server.memory()).toFixed(0)} MB`)
  } finally {
    for (const { server } of servers) await server.stop()
    await plc.close()
    await rm(folder, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  console.log(machine())
  await run((title, rows) => printTable(title, rows, ''))
}
