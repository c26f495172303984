/** Methods that nobody else is told to run in an account's name. Source: protocol.md, appendix B. */

/** They change the account itself, so no token for them is ever signed and no request for them is passed on. */
const PROTECTED: ReadonlySet<string> = lowerCase([
  'com.atproto.admin.sendEmail',
  'com.atproto.identity.requestPlcOperationSignature',
  'com.atproto.identity.signPlcOperation',
  'com.atproto.identity.updateHandle',
  'com.atproto.server.activateAccount',
  'com.atproto.server.confirmEmail',
  'com.atproto.server.createAppPassword',
  'com.atproto.server.deactivateAccount',
  'com.atproto.server.getAccountInviteCodes',
  'com.atproto.server.getSession',
  'com.atproto.server.listAppPasswords',
  'com.atproto.server.requestAccountDelete',
  'com.atproto.server.requestEmailConfirmation',
  'com.atproto.server.requestEmailUpdate',
  'com.atproto.server.revokeAppPassword',
  'com.atproto.server.updateEmail',
])

// Whoever is sent such a method may look at its name without regard to case.
function lowerCase(names: string[]): Set<string> {
  return new Set(names.map(name => name.toLowerCase()))
}

export function isProtectedMethod(lxm: string): boolean {
  return PROTECTED.has(lxm.toLowerCase())
}

/** Private conversations, and moving the account: not for app passwords without the privilege. */
export function isPrivilegedMethod(lxm: string): boolean {
  const name = lxm.toLowerCase()
  return name.startsWith('chat.bsky.') || name === 'com.atproto.server.createaccount'
}
