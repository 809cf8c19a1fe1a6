import { ponder } from "ponder:registry";
import { transfer } from "ponder:schema";

ponder.on("Token:Transfer", async ({ event, context }) => {
  await context.db.insert(transfer).values({
    id: event.id,
    block: event.block.number,
    token: event.log.address,
    sender: event.args.from,
    receiver: event.args.to,
    value: event.args.value,
  });
});
