/**
 * Taking over what another server had: accounts with all that is theirs, as they are.
 *
 * Each account is verified first (signature, tree, every record by its CID), its blobs are brought over by their hashes,
 * then it comes in one transaction, with the commit that the old server signed: heads and revs stay, so followers see no
 * change. Then what is here is compared with what was there. Accounts that are here already are only compared, so a run
 * that was cut short is simply run again.
 */
import { createHash } from 'node:crypto'
import type { Readable } from 'node:stream'
import { equal as sameBytes } from '@millisky/core/bytes'
import { decode, type Obj } from '@millisky/core/cbor'
import { Cid, CODEC_RAW } from '@millisky/core/cid'
import { SigningKey } from '@millisky/core/crypto'
import { Malformed } from '@millisky/core/errors'
import { type VerifiedRepo, verifyRepo } from '@millisky/core/repo'
import { type Did, parseRepoPath, type RepoPath } from '@millisky/core/syntax'
import type { BlobDriver } from '../blobs.ts'
import { isKnownHash } from '../passwords.ts'
import { findForeignBlobs, subjectOf } from '../records.ts'
import { type Account, type Arrival, type Store, type StoredRecord, Taken } from '../store/store.ts'
import {
  type ForeignAccount,
  type ForeignBlob,
  type ForeignServer,
  type OpenForeignAccount,
  revWithin,
} from './source.ts'

/** Differences that are told one by one. */
const TOLD_MAX = 1_000
const RECORDS_AT_ONCE = 500

/** What was looked at and found equal, and what was not. */
export interface AdoptionReport {
  source: string
  /** `brought` also counts those that a dry run would bring. */
  accounts: { found: number; brought: number; present: number; failed: number }
  /** What the old server has and is what its CID says. */
  verified: { heads: number; nodes: number; records: number; blobs: number; blobBytes: number }
  /** What is here and the same: the head's commit, each record's CID and bytes, each blob's hash. */
  equal: { heads: number; nodes: number; records: number; blobs: number }
  invites: number
  /** The last seq of the old server; ours go on above it. */
  lastSeq: number
  /** The first ones, in words. */
  differences: string[]
  differencesCount: number
  remarks: string[]
}

export interface AdoptionParts {
  source: ForeignServer
  /** Null to read and verify only. */
  target: { store: Store; driver: BlobDriver } | null
  now: () => number
  /** Told after each account. */
  onProgress?: (progress: { did: Did; done: number; total: number; report: AdoptionReport }) => void
}

/**
 * Brings everything over. No other process may serve the target meanwhile. Differences are in the report; what is thrown is
 * this server's own trouble.
 */
export async function adopt(parts: AdoptionParts): Promise<AdoptionReport> {
  const adoption = new Adoption(parts)
  await adoption.run()
  return adoption.report
}

interface VerifiedAccount {
  repo: VerifiedRepo
  nodes: number
  /** With their bytes in the blob store, if there is one. */
  blobs: ForeignBlob[]
}

class Adoption {
  readonly report: AdoptionReport
  readonly #parts: AdoptionParts

  constructor(parts: AdoptionParts) {
    const { source } = parts
    this.#parts = parts
    this.report = {
      source: source.name,
      accounts: { found: 0, brought: 0, present: 0, failed: 0 },
      verified: { heads: 0, nodes: 0, records: 0, blobs: 0, blobBytes: 0 },
      equal: { heads: 0, nodes: 0, records: 0, blobs: 0 },
      invites: 0,
      lastSeq: source.lastSeq(),
      differences: [],
      differencesCount: 0,
      remarks: [...source.remarks],
    }
  }

  async run(): Promise<void> {
    const { source, target, onProgress, now } = this.#parts
    const { report } = this
    const dids = source.dids()
    report.accounts.found = dids.length
    for (const [i, did] of dids.entries()) {
      await this.#account(did)
      onProgress?.({ did, done: i + 1, total: dids.length, report })
    }
    const invites = source.invites()
    report.invites = invites.length
    if (target) {
      await target.store.arrivals.addInvites(invites)
      for (const { did, key } of source.reservedKeys()) {
        const { didKey } = SigningKey.fromPrivate(key.curve, key.secret)
        await target.store.tickets.reserveKey(didKey, did, key, now())
      }
    }
    const end = source.lastSeq()
    if (end === report.lastSeq) return
    this.#differs(`the old server is running: its events went from ${report.lastSeq} to ${end} meanwhile`)
  }

  async #account(did: Did): Promise<void> {
    const { accounts } = this.report
    let open: OpenForeignAccount
    try {
      open = this.#parts.source.open(did)
    } catch (error) {
      accounts.failed++
      this.#differs(`${did}: cannot be read: ${messageOf(error)}`)
      return
    }
    try {
      await this.#opened(did, open)
    } catch (error) {
      if (!(error instanceof Malformed || error instanceof Taken)) throw error
      accounts.failed++
      this.#differs(`${did}: ${error.message}`)
    } finally {
      open.close()
    }
  }

  async #opened(did: Did, open: OpenForeignAccount): Promise<void> {
    const { target, now } = this.#parts
    const { accounts } = this.report
    const verified = { ...this.#verify(did, open), blobs: await this.#blobs(did, open) }
    const present = target ? await target.store.accounts.byDid(did) : null
    if (present) accounts.present++
    else {
      await target?.store.arrivals.add(arrivalOf(open, verified, now()))
      accounts.brought++
    }
    const here = target && (await target.store.accounts.byDid(did))
    if (here) await this.#compare(target.store, here, open, verified)
  }

  /** Goes through the whole repository. @throws Malformed */
  #verify(did: Did, { key, repo: foreign, account }: OpenForeignAccount): Omit<VerifiedAccount, 'blobs'> {
    const { verified } = this.report
    const { publicKey } = SigningKey.fromPrivate(key.curve, key.secret)
    const repo = verifyRepo({ root: foreign.root, blocks: foreign.blocks }, { did, key: publicKey })
    const { rev } = repo.head
    if (foreign.rev !== rev) this.#differs(`${did}: the commit is of rev ${rev}, its database says ${foreign.rev}`)
    let nodes = 0
    for (const _ of repo.nodes) nodes++
    let records = 0
    for (const { path, cid } of repo.records) {
      records++
      const listed = foreign.record(path)?.cid
      if (listed !== cid.toString()) this.#differs(`${did}: ${path} is ${cid}, its list of records says ${listed}`)
    }
    const listed = foreign.recordCount()
    if (listed !== records) this.#differs(`${did}: the tree has ${records} records, its list of records ${listed}`)
    if (account.password !== null && !isKnownHash(account.password)) {
      this.#differs(`${did}: its password is kept in a form that is not known here, and has to be set anew`)
    }
    verified.heads++
    verified.nodes += nodes
    verified.records += records
    return { repo, nodes }
  }

  /** Brings those blobs over that are not here yet; returns those that are here then. */
  async #blobs(did: Did, open: OpenForeignAccount): Promise<ForeignBlob[]> {
    const { verified } = this.report
    const here: ForeignBlob[] = []
    for (const blob of open.blobs()) {
      // What is taken down lies apart.
      const driver = blob.takedown === null ? null : (this.#parts.target?.driver ?? null)
      await driver?.restore(did, blob.cid)
      const size = await this.#blob(did, blob, open)
      if (size === null) continue
      await driver?.quarantine(did, blob.cid)
      verified.blobs++
      verified.blobBytes += size
      here.push({ ...blob, size })
    }
    return here
  }

  /** The blob's size, or null if it is not what it should be. */
  async #blob(did: Did, blob: ForeignBlob, open: OpenForeignAccount): Promise<number | null> {
    const { target } = this.#parts
    const { cid } = blob
    const present = (await target?.driver.open(did, cid)) ?? null
    if (present) {
      const found = await hashOf(present)
      if (found.cid.equals(cid)) return found.size
      this.#differs(`${did}: the blob ${cid} lies here with other bytes`)
      return null
    }
    const bytes = await open.blob(blob)
    if (!bytes) {
      // Uploaded and never used: it would have been collected.
      if (!blob.isLoose) this.#differs(`${did}: the old server lacks the bytes of the blob ${cid}`)
      return null
    }
    const meter = new Meter()
    if (!target) for await (const _ of meter.through(bytes));
    const staged = target && (await target.driver.stage(meter.through(bytes)))
    try {
      if (!meter.cid().equals(cid)) {
        this.#differs(`${did}: the blob ${cid} has other bytes on the old server`)
        return null
      }
      if (staged !== null) await target?.driver.keep(staged, did, cid)
      return meter.size
    } finally {
      if (staged !== null) await target?.driver.discard(staged)
    }
  }

  async #compare(store: Store, here: Account, open: OpenForeignAccount, verified: VerifiedAccount): Promise<void> {
    const { did } = here
    const { equal } = this.report
    const { head } = verified.repo
    const state = await store.repos.state(did)
    if (!state?.head.commit.equals(head.commit)) {
      this.#differs(
        `${did}: the head is ${state?.head.commit} (${state?.head.rev}) here, ${head.commit} (${head.rev}) there`,
      )
      return
    }
    if (!sameBytes(state.key.secret, open.key.secret)) this.#differs(`${did}: another signing key is here`)
    equal.heads++
    const { nodes } = await store.repos.counts(here.id)
    if (nodes === verified.nodes) equal.nodes += nodes
    else this.#differs(`${did}: ${nodes} tree nodes are here, ${verified.nodes} there`)
    await this.#compareRecords(store, here, verified.repo)
    for (const { cid, mimeType } of verified.blobs) {
      if ((await store.blobs.get(here.id, cid))?.mimeType === mimeType) equal.blobs++
      else this.#differs(`${did}: the blob ${cid} is not known here as ${mimeType}`)
    }
    this.#compareAccount(here, open.account)
  }

  #compareAccount(here: Account, there: ForeignAccount): void {
    for (const name of COMPARED) {
      if (here[name] !== there[name]) this.#differs(`${here.did}: ${name} is ${here[name]} here, ${there[name]} there`)
    }
  }

  async #compareRecords(store: Store, { id, did }: Account, repo: VerifiedRepo): Promise<void> {
    const { equal } = this.report
    await store.repos.snapshot(id, async view => {
      let page: StoredRecord[] = []
      let at = 0
      let last = ''
      const next = async () => {
        if (at === page.length) {
          page = await view.records(last, RECORDS_AT_ONCE)
          at = 0
        }
        return page[at]
      }
      for (const { path, cid } of repo.records) {
        const record = await next()
        if (record?.path !== path) {
          this.#differs(`${did}: the record ${path} is not here`)
          return
        }
        last = path
        at++
        if (record.cid.equals(cid) && cid.matches(record.bytes)) equal.records++
        else this.#differs(`${did}: the record ${path} is another one here`)
      }
      const more = await next()
      if (more) this.#differs(`${did}: the record ${more.path} is only here`)
    })
  }

  #differs(text: string): void {
    const { report } = this
    report.differencesCount++
    if (report.differences.length < TOLD_MAX) report.differences.push(text)
  }
}

/** Of what belongs to an account, what both must say. */
const COMPARED = ['handle', 'email', 'emailConfirmedAt', 'deactivatedAt', 'deleteAfter', 'takedown'] as const

function arrivalOf(
  { account, key, repo: foreign }: OpenForeignAccount,
  { repo, blobs }: VerifiedAccount,
  now: number,
): Arrival {
  const { head, block } = repo
  return {
    ...account,
    key,
    head,
    commit: block,
    blobs: blobs.map(({ isLoose: _, ...blob }) => ({ ...blob, looseSince: now })),
    *nodes() {
      for (const { cid, bytes } of repo.nodes) yield { cid, bytes, rev: revWithin(foreign.nodeRev(cid), head.rev) }
    },
    *records() {
      for (const { path, cid, bytes } of repo.records) {
        const record = decode(bytes) as Obj
        const { collection } = parseRepoPath(path as RepoPath)
        yield {
          path,
          cid,
          bytes,
          rev: revWithin(foreign.record(path)?.rev ?? null, head.rev),
          blobs: findForeignBlobs(record),
          subject: subjectOf(collection, record),
        }
      }
    },
  }
}

/** Hashes and counts what flows through. */
class Meter {
  size = 0
  readonly #hash = createHash('sha256')

  async *through(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of body) {
      this.#hash.update(chunk)
      this.size += chunk.length
      yield chunk
    }
  }

  cid(): Cid {
    return Cid.fromDigest(CODEC_RAW, this.#hash.digest())
  }
}

async function hashOf(body: Readable): Promise<{ cid: Cid; size: number }> {
  const meter = new Meter()
  for await (const _ of meter.through(body));
  return { cid: meter.cid(), size: meter.size }
}

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))
