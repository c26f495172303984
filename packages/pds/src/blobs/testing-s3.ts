/** An S3-speaking server for tests, as a process of its own. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { S3Place } from './s3.ts'

const SERVER = `
const S3rver = require(process.argv[1])
const [directory, bucket] = process.argv.slice(2)
const server = new S3rver({ port: 0, address: '127.0.0.1', silent: true, directory, configureBuckets: [{ name: bucket }] })
server.run().then(({ port }) => console.log(port))
`

export const BUCKET = 'blobs'

/** Starts it with one empty bucket. */
export async function startS3(t: { after(fn: () => Promise<void>): void }): Promise<S3Place & { endpoint: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'millisky-s3-'))
  const module = createRequire(import.meta.url).resolve('s3rver')
  const child = spawn(process.execPath, ['-e', SERVER, module, folder, BUCKET], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  t.after(async () => {
    child.kill()
    await exited
    await rm(folder, { recursive: true, force: true })
  })
  const [line] = await Promise.race([once(child.stdout, 'data'), exited.then(() => Promise.reject(new Error('no S3')))])
  return {
    bucket: BUCKET,
    region: 'us-east-1',
    endpoint: `http://127.0.0.1:${Number(String(line))}`,
    forcePathStyle: true,
    credentials: { accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER' },
    uploadTimeoutMs: 20_000,
    requestTimeoutMs: 15_000,
  }
}
