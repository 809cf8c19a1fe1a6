// SPDX-License-Identifier: MIT
pragma solidity ^0.8.0;

interface IToken {
    function transfer(address to, uint256 value) external returns (bool);
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// A pool of two tokens whose product of reserves never falls. No shares, no fee to anybody: what is added stays.
contract Pool {
    IToken public immutable token0;
    IToken public immutable token1;
    uint256 public reserve0;
    uint256 public reserve1;

    event Added(address indexed from, uint256 amount0, uint256 amount1);
    event Swap(address indexed trader, address indexed tokenIn, uint256 amountIn, uint256 amountOut);

    error NoSuchToken(address token);
    error TooLittle(uint256 amountOut, uint256 atLeast);

    constructor(IToken token0_, IToken token1_) {
        token0 = token0_;
        token1 = token1_;
    }

    function add(uint256 amount0, uint256 amount1) external {
        reserve0 += amount0;
        reserve1 += amount1;
        token0.transferFrom(msg.sender, address(this), amount0);
        token1.transferFrom(msg.sender, address(this), amount1);
        emit Added(msg.sender, amount0, amount1);
    }

    /// Three in a thousand of what comes in stays in the pool.
    function swap(address tokenIn, uint256 amountIn, uint256 atLeast) external returns (uint256 amountOut) {
        bool first = tokenIn == address(token0);
        if (!first && tokenIn != address(token1)) revert NoSuchToken(tokenIn);

        (uint256 here, uint256 there) = first ? (reserve0, reserve1) : (reserve1, reserve0);
        uint256 counted = amountIn * 997;
        amountOut = (counted * there) / (here * 1000 + counted);
        if (amountOut < atLeast) revert TooLittle(amountOut, atLeast);

        (reserve0, reserve1) = first
            ? (here + amountIn, there - amountOut)
            : (there - amountOut, here + amountIn);
        (first ? token0 : token1).transferFrom(msg.sender, address(this), amountIn);
        (first ? token1 : token0).transfer(msg.sender, amountOut);
        emit Swap(msg.sender, tokenIn, amountIn, amountOut);
    }
}
