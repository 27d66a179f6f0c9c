// Package pci is a PCI Express root bus: bus 0 with its host bridge, the two ways to reach configuration space, and the
// base address registers that place the functions' own registers on the port and memory buses.
//
// The ways in:
//
//	port 0xCF8  CONFIG_ADDRESS  31 enable, 23:16 bus, 15:11 device, 10:8 function, 7:2 register; dword access only
//	port 0xCFC  CONFIG_DATA     the dword that CONFIG_ADDRESS names, or any aligned part of it; 256 bytes a function
//	ECAM        memory          27:20 bus, 19:15 device, 14:12 function, 11:0 register; 4096 bytes a function
//
// The registers of a function (type 0 header; W = the bits that a guest can change):
//
//	00  vendor ID, device ID
//	04  command              W 0 I/O space, where there is an I/O BAR; 1 memory space, where there is a memory BAR;
//	                           2 bus master; 10 interrupt disable, where there is an interrupt pin
//	06  status               3 interrupt status; 4 capabilities list; W 8, 11-15 errors, written 1 to clear (none is ever raised)
//	08  revision ID, class code
//	0c  cache line size      W all, without effect
//	0e  header type          7 multi-function device
//	10  BAR 0-5              W the address bits above the size
//	2c  subsystem vendor ID, subsystem ID
//	34  capabilities pointer
//	3c  interrupt line       W all, where there is an interrupt pin
//	3d  interrupt pin
//	40  capabilities, in the order of [Function.AddCapability]
//	100 extended configuration space: zero, which is an empty list
//
// What is not listed reads as zero.
//
// A BAR is on its bus while the command register enables its kind of space, its address lies inside one of the
// windows of [Config], and nothing else is there. A guest may write any address to it: elsewhere it is not reachable,
// as behind a real host bridge that doesn't route the address. Where two BARs overlap, the one that came first keeps
// the range, and the other gets its own as soon as the range is free.
//
// Sources: PCI Local Bus 3.0 §3.2.2.3.2 (ports), PCI Express Base 5.0 §7.2.2 (ECAM), §7.5.1 (registers).
//
// # Deviations
//
//   - There is one bus and no bridge to another: other bus numbers read as ones.
//   - No function has the PCI Express capability unless its owner adds one: all are conventional functions of the root
//     complex, without a link or slot to describe. Linux uses the first 256 bytes of their configuration space.
//   - Parity error response and SERR# enable are hardwired to zero; the error bits of the status register stay zero.
//   - The two overlapping claimants of one address don't both answer, as they might on a shared bus.
//   - There is no expansion ROM, and no built-in self test.
package pci

import "fmt"

// The ports of [Root.ConfigAddress] and [Root.ConfigData], of four bytes each.
const (
	AddressPort = 0xcf8
	DataPort    = 0xcfc
)

// ECAMBusSize is what one bus takes of the ECAM: 32 devices of 8 functions of 4096 bytes.
const ECAMBusSize = 1 << 20

// BDF names a function: bus in bits 15:8, device in 7:3, function in 2:0. It is the requester ID of PCI Express Base
// 5.0 §2.2.6.2, and the part of an address in both configuration mechanisms.
type BDF uint16

// NewBDF puts a BDF together. Only the low five bits of device and the low three of function count.
func NewBDF(bus, device, function uint8) BDF {
	return BDF(bus)<<8 | BDF(device&0x1f)<<3 | BDF(function&7)
}

// Bus is the number of the bus.
func (b BDF) Bus() uint8 { return uint8(b >> 8) }

// Device is the number of the device on its bus, 0 to 31.
func (b BDF) Device() uint8 { return uint8(b>>3) & 0x1f }

// Function is the number of the function in its device, 0 to 7.
func (b BDF) Function() uint8 { return uint8(b) & 7 }

// String writes b as lspci does: 00:1f.2.
func (b BDF) String() string {
	return fmt.Sprintf("%02x:%02x.%d", b.Bus(), b.Device(), b.Function())
}

// Registers of the type 0 header (PCI Express Base 5.0 §7.5.1.1 and §7.5.1.2).
const (
	regVendorID      = 0x00
	regDeviceID      = 0x02
	regCommand       = 0x04
	regStatus        = 0x06
	regRevisionID    = 0x08
	regClassCode     = 0x09
	regCacheLineSize = 0x0c
	regHeaderType    = 0x0e
	regBAR0          = 0x10
	regSubsystem     = 0x2c
	regCapabilities  = 0x34
	regInterruptLine = 0x3c
	regInterruptPin  = 0x3d

	headerEnd       = 0x40   // first byte after the header
	conventionalEnd = 0x100  // first byte that only the ECAM reaches
	spaceSize       = 0x1000 // the whole configuration space of one function
)

// Bits of the command register that concern a function's owner.
const (
	CommandBusMaster   = 1 << 2  // the function may access memory, and send messages
	CommandINTxDisable = 1 << 10 // the function must not assert its pin
)

// Other bits of the command, status and header type registers.
const (
	commandIO     = 1 << 0
	commandMemory = 1 << 1

	statusInterrupt    = 1 << 3
	statusCapabilities = 1 << 4
	statusErrors       = 0xf900

	headerMultiFunction = 1 << 7
)
