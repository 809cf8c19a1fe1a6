import { onchainTable } from "ponder";

export const transfer = onchainTable("transfer", (t) => ({
  id: t.text().primaryKey(),
  block: t.bigint().notNull(),
  token: t.hex().notNull(),
  sender: t.hex().notNull(),
  receiver: t.hex().notNull(),
  value: t.bigint().notNull(),
}));
