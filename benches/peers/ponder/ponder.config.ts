import { createConfig } from "ponder";
import { parseAbi } from "viem";

export default createConfig({
  database: { kind: "postgres", connectionString: process.env.DATABASE_URL },
  chains: {
    local: {
      id: 31337,
      rpc: process.env.RPC_URL,
      ws: process.env.WS_URL,
      pollingInterval: 100,
      disableCache: true,
    },
  },
  contracts: {
    Token: {
      chain: "local",
      abi: parseAbi(["event Transfer(address indexed from, address indexed to, uint256 value)"]),
      address: process.env.TOKEN as `0x${string}`,
      startBlock: 0,
    },
  },
});
