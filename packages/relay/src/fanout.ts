/**
 * Fan-out: one relay's stream sent on to many, under the same seqs and with the same bytes, so that a consumer may go from
 * one to the other. The same log and the same consumers as a relay of our own has; no hosts, no accounts, no database.
 *
 * When the other relay turns out to have begun anew, so does this: what it holds has seqs that now mean other events.
 */
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { SettingsError } from '@millisky/server/config'
import { Fetcher } from '@millisky/server/fetch'
import type { FollowSettings } from '@millisky/server/follow'
import type { SubscribeSettings } from '@millisky/server/subscribe'
import { createLog, type Logger } from '@millisky/server/trace'
import type { RelaySettings } from './config.ts'
import { assertOwner, isOwnerFile } from './fanout/owner.ts'
import { openStage, type StageParts } from './fanout/stage.ts'
import { fatal } from './fatal.ts'
import { RELAY_MARKER } from './upstreams.ts'

const PRUNE_MS = 60_000

export interface FanoutParts {
  log?: Logger
  version?: string
  /** Milliseconds since 1970. */
  now?: () => number
  /** The disk failed; default is to end the process. */
  onFatal?: (error: unknown) => void
  subscribe?: Partial<SubscribeSettings>
  follow?: Partial<FollowSettings>
}

export interface Fanout {
  /** Where it listens, without a slash at the end; known after {@link listen}. */
  readonly url: string
  /** How often it had to begin anew since it started. */
  readonly resets: number
  listen(): Promise<void>
  /** Drops what is older or more than is to be kept; done every minute anyway. */
  prune(): Promise<void>
  close(): Promise<void>
}

/** @throws SettingsError when the settings are wrong, or the log has the seqs of another relay */
export async function createFanout(settings: RelaySettings, parts: FanoutParts = {}): Promise<Fanout> {
  const { log = createLog({ name: 'relay', level: settings.logLevel }), version = '0.0.0', now = Date.now } = parts
  const { onFatal = fatal(log) } = parts
  const userAgent = `millisky-relay/${version} (${RELAY_MARKER})`
  const upstream = originOf(settings.upstream ?? '', settings.allowInsecureHosts)
  assertOwner(settings.persistDir, upstream)
  // The operator names the relay, so it may be anywhere.
  const fetcher = new Fetcher({ allowPrivate: true, userAgent })
  const state = { url: '', resets: 0, isClosing: false, restarting: null as Promise<void> | null }
  const ground: StageParts = {
    settings,
    log,
    now,
    userAgent,
    version,
    upstream,
    fetcher,
    onFatal,
    onReset: why => {
      state.restarting ??= restart(why).catch(onFatal)
    },
    resets: () => state.resets,
    ...(parts.subscribe ? { subscribe: parts.subscribe } : {}),
    ...(parts.follow ? { follow: parts.follow } : {}),
  }
  let stage = await openStage(ground)
  const restart = async (why: string) => {
    // Not within the callback of the connection that is to be ended.
    await new Promise(setImmediate)
    if (state.isClosing) return
    log.error({ upstream, why, head: stage.events.head }, 'the other relay has begun anew, and so does this one')
    state.resets++
    await stage.close()
    await clearLog(settings.persistDir)
    stage = await openStage(ground)
    state.restarting = null
    if (!state.isClosing) await stage.listen(Number(new URL(state.url).port))
  }
  const timer = setInterval(() => void stage.prune(), PRUNE_MS)
  timer.unref()
  let closing: Promise<void> | null = null
  const close = async () => {
    state.isClosing = true
    clearInterval(timer)
    await state.restarting
    await stage.close()
    await fetcher.close()
  }
  return {
    get url() {
      return state.url
    },
    get resets() {
      return state.resets
    },
    async listen() {
      state.url = await stage.listen()
      const { head, oldest } = stage.events
      log.info({ url: state.url, upstream, head, oldest }, 'the fan-out is listening')
    },
    prune: () => stage.prune(),
    close() {
      closing ??= close()
      return closing
    },
  }
}

/** @throws SettingsError unless it names a relay; plain `http:` only in development */
function originOf(text: string, insecure: boolean): string {
  const url = URL.parse(/^[a-z]+:\/\//i.test(text) ? text.replace(/^ws/i, 'http') : `https://${text}`)
  const isFine = url && url.pathname === '/' && url.username === '' && url.search === ''
  if (isFine && (url.protocol === 'https:' || (insecure && url.protocol === 'http:'))) return url.origin
  throw new SettingsError('relay', [`--upstream is the URL of a relay, https://…, not ${JSON.stringify(text)}`])
}

async function clearLog(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!isOwnerFile(name)) await rm(join(folder, name), { recursive: true, force: true })
  }
}
