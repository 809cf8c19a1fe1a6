// SPDX-License-Identifier: MIT
pragma solidity ^0.8.0;

/// Holds ether for whoever sent it.
contract Vault {
    mapping(address => uint256) public held;

    event Deposit(address indexed from, uint256 value, bytes32 indexed note);
    event Withdrawal(address indexed to, uint256 value);

    error NotEnough(uint256 has, uint256 wants);

    receive() external payable {
        take(0);
    }

    function deposit(bytes32 note) external payable {
        take(note);
    }

    function withdraw(uint256 value) external {
        uint256 has = held[msg.sender];
        if (has < value) revert NotEnough(has, value);
        held[msg.sender] = has - value;
        emit Withdrawal(msg.sender, value);
        (bool sent, ) = msg.sender.call{value: value}("");
        require(sent, "not taken");
    }

    function take(bytes32 note) private {
        held[msg.sender] += msg.value;
        emit Deposit(msg.sender, msg.value, note);
    }
}
