// SPDX-License-Identifier: MIT
pragma solidity ^0.8.0;

/// Makes contracts and says so, or does not: what a factory is to those who follow it.
contract Maker {
    event Made(address indexed child, uint256 pings);

    /// The child has spoken before it is named, and speaks again after, in the same transaction.
    function make(uint256 pings) external returns (Child child) {
        child = new Child();
        emit Made(address(child), pings);
        for (uint256 i = 0; i < pings; i++) child.ping(i);
    }

    /// Nobody is told of this one.
    function makeUnsaid() external returns (Child child) {
        child = new Child();
        child.ping(7);
    }
}

contract Child {
    event Pinged(uint256 value);

    constructor() {
        emit Pinged(1000);
    }

    function ping(uint256 value) external {
        emit Pinged(value);
    }
}
