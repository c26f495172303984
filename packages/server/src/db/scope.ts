import { AsyncLocalStorage } from 'node:async_hooks'

const current = new AsyncLocalStorage<{ readonly open: boolean }>()

/** Runs the body of a transaction such that {@link assertOutsideTransaction} can tell. */
export function insideTransaction<T>(tx: { readonly open: boolean }, fn: () => T): T {
  return current.run(tx, fn)
}

/**
 * Catches a write or transaction begun on the database from inside an open transaction: on SQLite it would wait for itself for ever, on
 * PostgreSQL it would quietly not be part of it.
 */
export function assertOutsideTransaction(): void {
  if (current.getStore()?.open) {
    throw new Error('inside a transaction, use the transaction for writes, not the database')
  }
}

/** Fails on the use of a transaction that has ended: its statements would become part of someone else's. */
export function assertOpen(tx: { readonly open: boolean }): void {
  if (!tx.open) throw new Error('this transaction has ended')
}

/** Runs the hooks of a committed transaction. One that throws is a bug, but the change stands, so its caller must not be told otherwise. */
export function runHooks(hooks: readonly (() => void)[]): void {
  for (const hook of hooks) {
    try {
      hook()
    } catch (error) {
      process.nextTick(() => {
        throw error
      })
    }
  }
}
