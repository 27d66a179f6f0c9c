package kvm

import "unsafe"

// hostAddr returns the address of a mapping.
func hostAddr(mapping []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&mapping[0]))) }

func runPageAt(words []uint64) *runPage { return (*runPage)(unsafe.Pointer(&words[0])) }
