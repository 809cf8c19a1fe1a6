// SPDX-License-Identifier: MIT
pragma solidity ^0.8.0;

/// Moves what it is sent in every way that there is, and takes some of it back.
contract Purse {
    Hand private immutable hand = new Hand();
    uint256 private made;

    receive() external payable {}

    /// 1 and 3 and 6 are paid, 2 is taken back, 4 and 5 go to contracts, and 4 from there to the first.
    function spread(address payable first, address payable second) external payable {
        pay(first, 1);
        try this.payAndFail{value: 2}(second) {} catch {}
        pay(second, 3);
        Heir heir = new Heir{value: 4}();
        new Heir{value: 5, salt: bytes32(made++)}();
        heir.leave(first);
        (bool done, ) = address(hand).delegatecall(abi.encodeCall(Hand.pay, (second, 6)));
        require(done, "the hand");
    }

    function payAndFail(address payable to) external payable {
        pay(to, msg.value);
        revert("taken back");
    }

    /// Hands what it is sent to itself, so often, and then on.
    function dig(uint256 depth, address payable to) external payable {
        if (depth == 0) return pay(to, msg.value);
        this.dig{value: msg.value}(depth - 1, to);
    }

    function pay(address payable to, uint256 value) private {
        (bool done, ) = to.call{value: value}("");
        require(done, "paid");
    }
}

/// Code that pays from whoever borrows it.
contract Hand {
    function pay(address payable to, uint256 value) external payable {
        (bool done, ) = to.call{value: value}("");
        require(done, "paid");
    }
}

contract Heir {
    constructor() payable {}

    function leave(address payable to) external {
        selfdestruct(to);
    }
}
