/** The directory over HTTP. Paths, replies and statuses are those of plc.directory. Source: did:plc spec v0.3.0. */
import { Refused } from '@millisky/core/errors'
import { plcHead, plcToDocument } from '@millisky/core/plc'
import { type Did, isDatetime } from '@millisky/core/syntax'
import { envelopeOf } from '@millisky/server/envelope'
import type { Logger } from '@millisky/server/trace'
import { notWebSocket } from '@millisky/server/upgrade'
import type { FastifyInstance } from 'fastify'
import type { Directory } from './directory.ts'
import { sequencedOp } from './export-stream.ts'

const COUNT_MAX = 1_000
/** JSON of the largest operation, with room for a writer who likes blanks. */
const OPERATION_JSON_BYTES_MAX = 32_768

/** What the server says of itself. */
export interface About {
  version: string
  /** Of a replica: what it follows, and how that goes. */
  replica: { of: string; state: () => object } | null
}

type OfDid = { Params: { did: Did } }

/** Adds the routes to a scope of their own, since errors here are `{message}`. */
export function addApi(http: FastifyInstance, directory: Directory, log: Logger, about: About): void {
  http.register(async scope => {
    scope.setErrorHandler((error, request, reply) => {
      const { status, message, headers, isBug } = envelopeOf(error)
      if (isBug) log.error({ method: request.method, path: request.url, err: error }, 'request failed')
      if (headers) reply.headers(headers)
      return reply.code(status).type('application/json').send(JSON.stringify({ message }))
    })
    addGeneral(scope, directory, about)
    addReads(scope, directory)
    scope.post<OfDid>('/:did', { config: { bodyBytesMax: OPERATION_JSON_BYTES_MAX } }, async (request, reply) => {
      if (about.replica) {
        const where = `This is a read replica: operations are accepted by ${about.replica.of}`
        throw new Refused('ReadReplica', where, 405, { allow: 'GET, HEAD' })
      }
      await directory.accept(request.params.did, request.body)
      return reply.type('text/plain; charset=utf-8').send('OK')
    })
  })
}

function addGeneral(scope: FastifyInstance, directory: Directory, { version, replica }: About): void {
  scope.get('/', async (_request, reply) =>
    reply.type('text/plain; charset=utf-8').send('This is a did:plc directory.\n\nSource: https://web.plc.directory\n'),
  )
  scope.get('/_health', async (_request, reply) => {
    try {
      directory.check()
      return replica ? { version, replicaOf: replica.of, ...replica.state() } : { version }
    } catch {
      return reply.code(503).send({ version, error: 'Service Unavailable' })
    }
  })
  scope.get<{ Querystring: Record<string, string | undefined> }>('/export', async (request, reply) => {
    const lines = exportLines(directory, request.query)
    return reply.type('application/jsonlines').send(lines.map(line => `${JSON.stringify(line)}\n`).join(''))
  })
  scope.get('/export/stream', async request => {
    throw notWebSocket(request.method)
  })
}

/** A number as `after` asks for the form with seq; a time, or nothing, for the one from before there were any. */
function exportLines(directory: Directory, query: Record<string, string | undefined>): object[] {
  const { after, count: text = String(COUNT_MAX) } = query
  const count = /^\d{1,9}$/.test(text) ? Math.min(Number(text), COUNT_MAX) : 0
  if (count < 1) throw new Refused('InvalidRequest', 'Invalid count parameter')
  if (after !== undefined && /^\d{1,15}$/.test(after)) return directory.after(Number(after), count).map(sequencedOp)
  if (after !== undefined && !isDatetime(after)) throw new Refused('InvalidRequest', 'Invalid after parameter')
  const time = after === undefined ? '' : new Date(after).toISOString()
  return directory
    .afterTime(time, count)
    .map(({ did, operation, cid, nullified, createdAt }) => ({ did, operation, cid, nullified, createdAt }))
}

function addReads(scope: FastifyInstance, directory: Directory): void {
  scope.get<OfDid>('/:did', async ({ params: { did } }, reply) => {
    const document = plcToDocument(did, directory.data(did))
    return reply.type('application/did+ld+json; charset=utf-8').send(JSON.stringify(document))
  })
  scope.get<OfDid>('/:did/data', async ({ params: { did } }) => {
    const { verificationMethods, rotationKeys, alsoKnownAs, services } = directory.data(did)
    return { did, verificationMethods, rotationKeys, alsoKnownAs, services }
  })
  scope.get<OfDid>('/:did/log', async ({ params: { did } }) =>
    directory
      .log(did)
      .filter(entry => !entry.nullified)
      .map(entry => entry.operation),
  )
  scope.get<OfDid>('/:did/log/audit', async ({ params: { did } }) => directory.log(did))
  scope.get<OfDid>('/:did/log/last', async ({ params: { did } }) => plcHead(directory.log(did))?.operation)
}
