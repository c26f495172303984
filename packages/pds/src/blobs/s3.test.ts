// What the server of the contract's tests does not know: uploads in parts that a crash has cut off.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type TestContext, test } from 'node:test'
import { createS3Blobs } from './s3.ts'
import { startS3 } from './testing-s3.ts'

const DAY = 24 * 3_600_000

interface Upload {
  key: string
  id: string
  at: number
}

/** A bucket that holds nothing but uploads in parts, listed two at a time. */
async function startBucket(t: TestContext, status = 200) {
  const uploads: Upload[] = []
  const aborted: string[] = []
  const server = createServer((request, response) => {
    const { pathname, searchParams: query } = new URL(request.url!, 'http://s3')
    const xml = (root: string, text: string) => response.end(`<${root}>${text}</${root}>`)
    request.resume()
    if (query.has('list-type')) return xml('ListBucketResult', '')
    if (request.method === 'DELETE' && query.has('uploadId')) {
      aborted.push(`${pathname} ${query.get('uploadId')}`)
      const at = uploads.findIndex(({ id }) => id === query.get('uploadId'))
      response.statusCode = at < 0 ? 404 : 204
      return at < 0 ? xml('Error', '<Code>NoSuchUpload</Code>') : response.end(void uploads.splice(at, 1))
    }
    response.statusCode = status
    if (status !== 200) return xml('Error', '<Code>No</Code><Message>no</Message>')
    const prefix = query.get('prefix') ?? ''
    const known = uploads.filter(({ key }) => key.startsWith(prefix))
    const from = known.findIndex(({ id }) => id === query.get('upload-id-marker')) + 1
    const page = known.slice(from, from + 2)
    const more = known.length > from + 2
    const [last] = page.slice(-1)
    xml(
      'ListMultipartUploadsResult',
      `<IsTruncated>${more}</IsTruncated>${more ? `<NextKeyMarker>${last!.key}</NextKeyMarker><NextUploadIdMarker>${last!.id}</NextUploadIdMarker>` : ''}` +
        page
          .map(({ key, id, at }) => {
            const initiated = new Date(at).toISOString()
            return `<Upload><Key>${key}</Key><UploadId>${id}</UploadId><Initiated>${initiated}</Initiated></Upload>`
          })
          .join(''),
    )
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const driver = createS3Blobs({
    bucket: 'blobs',
    region: 'us-east-1',
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    forcePathStyle: true,
    credentials: { accessKeyId: 'id', secretAccessKey: 'secret' },
    uploadTimeoutMs: 20_000,
    requestTimeoutMs: 15_000,
  })
  return { driver, uploads, aborted }
}

test('uploads that a crash has cut off are stale after a day, and are ended', async t => {
  const { driver, uploads, aborted } = await startBucket(t)
  const now = Date.now()
  const put = (id: string, at: number, key = `tmp/millisky/name-${id}`) => uploads.push({ key, id, at })
  for (const id of ['a', 'b', 'c']) put(id, now - 2 * DAY)
  put('young', now - DAY + 60_000)
  put('foreign', now - 9 * DAY, 'backups/all.tar')
  put('d', now - 9 * DAY)
  const stale = await driver.stale(now)
  assert.deepEqual(stale, ['name-a a', 'name-b b', 'name-c c', 'name-d d'])
  for (const name of stale) await driver.discard(name)
  assert.deepEqual(
    uploads.map(({ id }) => id),
    ['young', 'foreign'],
  )
  assert.equal(aborted[0], '/blobs/tmp/millisky/name-a a')
  // Somebody else was quicker.
  await driver.discard('name-a a')
  assert.deepEqual(await driver.stale(now), [])
})

for (const status of [403, 405, 501]) {
  test(`where a service answers ${status} there are none that we could know of`, async t => {
    const { driver } = await startBucket(t, status)
    assert.deepEqual(await driver.stale(Date.now()), [])
  })
}

test('a service that does not list them loses nothing else by it', async t => {
  const driver = createS3Blobs(await startS3(t))
  const name = await driver.stage(
    (async function* () {
      yield new Uint8Array(6_000_000)
    })(),
  )
  assert.deepEqual(await driver.stale(Date.now() + 60_000), [name])
})
