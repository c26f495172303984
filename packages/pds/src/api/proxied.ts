/** Methods of the app view that this server has a part in: fresh writes, feeds' tokens, push services. */
import { Refused } from '@millisky/core/errors'
import { valueToJson } from '@millisky/core/json'
import { main as getProfile } from '@millisky/core/lexicon/gen/app/bsky/actor/getProfile'
import { main as getProfiles } from '@millisky/core/lexicon/gen/app/bsky/actor/getProfiles'
import { main as getActorLikes } from '@millisky/core/lexicon/gen/app/bsky/feed/getActorLikes'
import { main as getAuthorFeed } from '@millisky/core/lexicon/gen/app/bsky/feed/getAuthorFeed'
import { main as getFeed } from '@millisky/core/lexicon/gen/app/bsky/feed/getFeed'
import { main as getPostThread } from '@millisky/core/lexicon/gen/app/bsky/feed/getPostThread'
import { main as getTimeline } from '@millisky/core/lexicon/gen/app/bsky/feed/getTimeline'
import { main as registerPush } from '@millisky/core/lexicon/gen/app/bsky/notification/registerPush'
import { main as unregisterPush } from '@millisky/core/lexicon/gen/app/bsky/notification/unregisterPush'
import { asNsid, type Did } from '@millisky/core/syntax'
import type { Logger } from '@millisky/server/trace'
import type { MethodOptions, Xrpc } from '@millisky/server/xrpc'
import type { FastifyRequest } from 'fastify'
import type { PdsAccess, SessionUser } from '../access.ts'
import type { PdsSettings, ServiceNames } from '../config.ts'
import { FeedGenerators } from '../proxy/generators.ts'
import { passedReply, type ServiceProxy } from '../proxy.ts'
import {
  type Overlay,
  overAuthorFeed,
  overLikes,
  overProfile,
  overProfiles,
  overThread,
  overTimeline,
} from '../read-after-write/overlays.ts'
import { ReadAfterWrite } from '../read-after-write.ts'
import type { Store } from '../store/store.ts'

export interface ProxiedApiParts {
  settings: Pick<PdsSettings, 'appViewCdnUrlPattern'>
  names: Pick<ServiceNames, 'publicUrl'>
  store: Store
  access: PdsAccess
  proxy: ServiceProxy
  /** Milliseconds since 1970. */
  now: () => number
  log: Logger
}

const GET_FEED_SKELETON = 'app.bsky.feed.getFeedSkeleton'

/** Adds the methods. */
export function addProxiedApi(xrpc: Xrpc, parts: ProxiedApiParts): void {
  addFresh(xrpc, parts)
  addFeeds(xrpc, parts)
  addPush(xrpc, parts)
}

function addFresh(xrpc: Xrpc, parts: ProxiedApiParts): void {
  const { access, proxy, settings, names } = parts
  const readAfterWrite = new ReadAfterWrite({
    ...parts,
    cdnUrlPattern: settings.appViewCdnUrlPattern,
    publicUrl: names.publicUrl,
  })
  const options = { auth: access.user, instead: proxy.unlessServed }
  const add = <M extends typeof getProfile | typeof getProfiles | typeof getActorLikes | typeof getTimeline>(
    schema: M,
    overlay: Overlay<never>,
  ) => {
    const nsid = asNsid(schema.nsid)
    xrpc.query(schema, options as MethodOptions<M, SessionUser>, call =>
      readAfterWrite.serve(call as never, nsid, overlay),
    )
  }
  add(getProfile, overProfile)
  add(getProfiles, overProfiles)
  add(getActorLikes, overLikes)
  add(getTimeline, overTimeline)
  xrpc.query(getAuthorFeed, options, call => readAfterWrite.serve(call, asNsid(getAuthorFeed.nsid), overAuthorFeed))
  xrpc.query(getPostThread, options, async call => {
    try {
      return await readAfterWrite.serve(call, asNsid(getPostThread.nsid), overThread)
    } catch (error) {
      return readAfterWrite.serveUnknownThread(call, error)
    }
  })
}

/** A feed's own server is asked by the app view with the caller's token, so it is for that server that it is made. */
function addFeeds(xrpc: Xrpc, parts: ProxiedApiParts): void {
  const { access, proxy } = parts
  const generators = new FeedGenerators(parts)
  xrpc.query(getFeed, { auth: access.user, instead: proxy.unlessServed }, async call => {
    const { request, auth, params, signal } = call
    const nsid = asNsid(getFeed.nsid)
    const service = await proxy.serviceOf(request, nsid)
    const aud = await generators.didOf(params.feed, auth.did, service)
    const token = { aud, lxm: GET_FEED_SKELETON }
    return passedReply(await proxy.pass({ request, nsid, user: auth, service, token, signal }))
  })
}

function addPush(xrpc: Xrpc, { access, proxy }: ProxiedApiParts): void {
  const pass = async (request: FastifyRequest, nsid: string, user: SessionUser, serviceDid: Did, json: string) => {
    const service = await pushService(proxy, serviceDid)
    const { body } = await proxy.pass({ request, nsid: asNsid(nsid), user, service, json })
    // Nothing is promised, and the connection can be used again.
    body.resume()
  }
  xrpc.procedure(registerPush, { auth: access.user }, ({ request, auth, input }) =>
    pass(request, registerPush.nsid, auth, input.serviceDid, valueToJson(input as never)),
  )
  xrpc.procedure(unregisterPush, { auth: access.user }, ({ request, auth, input }) =>
    pass(request, unregisterPush.nsid, auth, input.serviceDid, valueToJson(input as never)),
  )
}

async function pushService({ targets }: ServiceProxy, did: Did) {
  const { appView } = targets.services
  if (appView?.did === did) return appView
  const service = await targets.find({ did, id: 'bsky_notif', type: 'BskyNotificationService' })
  if (service === 'no-document') throw new Refused('InvalidRequest', `could not resolve did document: ${did}`)
  if (service === 'no-service') {
    throw new Refused('InvalidRequest', `invalid notification service details in did document: ${did}`)
  }
  return service
}
