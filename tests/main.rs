mod harness;
mod source;
mod verify;
