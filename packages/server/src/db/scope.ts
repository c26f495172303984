import { AsyncLocalStorage } from 'node:async_hooks'

const current = new AsyncLocalStorage<{ readonly open: boolean }>()

/** The synchronous transaction whose body is running. */
let running: { readonly open: boolean } | null = null

/** {@link insideTransaction} for a body that runs to its end here and now, which needs no context that is carried along. */
export function duringTransaction<T>(tx: { readonly open: boolean }, fn: () => T): T {
  const before = running
  running = tx
  try {
    return fn()
  } finally {
    running = before
  }
}

/** Runs the body of a transaction such that {@link assertOutsideTransaction} can tell. */
export function insideTransaction<T>(tx: { readonly open: boolean }, fn: () => T): T {
  return current.run(tx, fn)
}

/**
 * Catches a write or transaction begun on the database from inside an open transaction: on SQLite it would wait for itself for ever, on
 * PostgreSQL it would quietly not be part of it.
 */
export function assertOutsideTransaction(): void {
  if (running?.open || current.getStore()?.open) {
    throw new Error('inside a transaction, use the transaction for writes, not the database')
  }
}

/** Fails on the use of a transaction that has ended: its statements would become part of someone else's. */
export function assertOpen(tx: { readonly open: boolean }): void {
  if (!tx.open) throw new Error('this transaction has ended')
}

/** What is to be done after a commit. */
export type Hook = () => unknown

/**
 * Runs the hooks of a committed transaction. One that throws is a bug, but the change stands, so its caller must not be told otherwise.
 * @returns what to wait for, if anything.
 */
export function runHooks(hooks: readonly Hook[]): Promise<unknown> | undefined {
  let waits: Promise<unknown>[] | undefined
  const fail = (error: unknown) => {
    process.nextTick(() => {
      throw error
    })
  }
  for (const hook of hooks) {
    try {
      const wait = hook()
      if (wait instanceof Promise) (waits ??= []).push(wait.catch(fail))
    } catch (error) {
      fail(error)
    }
  }
  return waits && Promise.all(waits)
}
