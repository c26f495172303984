// Two servers to compare: this PDS and the reference's, each with a directory, a mailbox and an app view of its own.
import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { settings as pdsSettings } from '../../packages/pds/src/config.ts'
import { createPds } from '../../packages/pds/src/main.ts'
import { type Mailbox, startMailbox } from '../../packages/pds/src/testing-mail.ts'
import { startNetwork } from '../../packages/pds/src/testing-network.ts'
import { json, type StandIn, startStandIn } from '../../packages/pds/src/testing-services.ts'
import { readSettings } from '../../packages/server/src/config.ts'
import { silentLog } from '../../packages/server/src/trace.ts'
import { freePort } from './ports.ts'
import { ReferenceDaemon } from './reference-daemon.ts'

export const ADMIN_PASSWORD = 'admin of tests'
export const JWT_SECRET = 'a secret that both servers share'

export interface Cleanup {
  after(fn: () => Promise<void> | void): void
}

/** One of the two, with what surrounds it. */
export interface Server {
  url: string
  mailbox: Mailbox
  appView: StandIn
  plcUrl: string
}

interface Around {
  port: number
  folder: string
  env: Record<string, string>
}

async function startAround(t: Cleanup): Promise<Omit<Server, 'url'> & Around> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-differences-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const { plc } = await startNetwork(t as never)
  const plcUrl = plc.url.replace('127.0.0.1', 'localhost')
  const mailbox = await startMailbox(t as never)
  const appView = await startStandIn(t as never, { atproto_labeler: 'AtprotoLabeler' })
  appView.answer = ({ path, method, token, body }, response) => {
    if (path.includes('com.example.broken')) return json(response, { error: 'Oops', message: 'broken' }, {}, 500)
    if (path.includes('com.example.refuses')) return json(response, { error: 'NotToday', message: 'no' }, {}, 418)
    if (path.includes('createReport')) {
      const { reasonType, subject } = JSON.parse(body.toString())
      const report = {
        id: 1,
        reasonType,
        subject,
        reportedBy: token!.payload.iss,
        createdAt: '2026-08-20T12:00:00.000Z',
      }
      return json(response, report)
    }
    json(
      response,
      { path: path.split('?')[0], method, lxm: token?.payload.lxm ?? null },
      { 'x-hidden': '1', 'retry-after': '7' },
    )
  }
  const port = await freePort()
  const env = {
    PDS_HOSTNAME: 'localhost',
    PDS_PORT: String(port),
    PDS_DEV_MODE: 'true',
    PDS_DATA_DIRECTORY: folder,
    PDS_BLOBSTORE_DISK_LOCATION: join(folder, 'blobs'),
    // By a name: the reference takes no address.
    PDS_DID_PLC_URL: plcUrl,
    PDS_JWT_SECRET: JWT_SECRET,
    PDS_ADMIN_PASSWORD: ADMIN_PASSWORD,
    PDS_INVITE_REQUIRED: 'false',
    PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX: createHash('sha256').update(JWT_SECRET).digest('hex'),
    PDS_SERVICE_HANDLE_DOMAINS: '.test',
    PDS_DISABLE_SSRF_PROTECTION: 'true',
    PDS_RATE_LIMITS_ENABLED: 'false',
    PDS_BSKY_APP_VIEW_URL: appView.url,
    PDS_BSKY_APP_VIEW_DID: appView.did,
    PDS_MOD_SERVICE_URL: appView.url,
    PDS_MOD_SERVICE_DID: appView.did,
    PDS_REPORT_SERVICE_URL: appView.url,
    PDS_REPORT_SERVICE_DID: appView.did,
    PDS_BLOB_UPLOAD_LIMIT: '5242880',
    PDS_CONTACT_EMAIL_ADDRESS: 'admin@pds.test',
    PDS_PRIVACY_POLICY_URL: 'https://pds.test/privacy',
    ...mailbox.env,
  }
  await mkdir(env.PDS_BLOBSTORE_DISK_LOCATION, { recursive: true })
  return { mailbox, appView, plcUrl, port, folder, env }
}

/** This project's server. */
export async function startOurs(t: Cleanup, extra: Record<string, string> = {}): Promise<Server> {
  const { env, ...around } = await startAround(t)
  const pds = await createPds(readSettings(pdsSettings, [], { env: { ...env, ...extra } }), { log: silentLog })
  t.after(() => pds.close())
  await pds.listen()
  return { ...around, url: `http://localhost:${around.port}` }
}

/** The reference. */
export async function startReference(t: Cleanup, extra: Record<string, string> = {}): Promise<Server> {
  const { env, ...around } = await startAround(t)
  const { folder, port, plcUrl } = around
  const reference = new ReferenceDaemon({ folder, port, plcUrl, env: { ...env, ...extra } })
  t.after(() => reference.stop())
  await reference.start()
  return { ...around, url: reference.url }
}
