#!/usr/bin/perl
# Prints each change of the set of admitted taps in the network namespace that it is run in, as the kernel tells it over netlink
# (linux/netfilter/nf_tables.h): `+ TAP`, `- TAP`, `0` when the set or its table is gone, and `= GENERATION PID` at the end of each
# transaction. `nft monitor` keeps its own list of sets and falls silent about one whose making it misread.
use strict;
use warnings;
use Socket qw(SOCK_RAW);
use constant { AF_NETLINK => 16, NETLINK_NETFILTER => 12, NFNLGRP_NFTABLES => 7, SO_RCVBUFFORCE => 33, SOL_SOCKET => 1 };
use constant { TABLE => 'pratique', SET => 'admitted', FAMILY_BRIDGE => 7 };
# Message types, without the subsystem in the upper byte.
use constant { DELTABLE => 2, DELSET => 11, NEWSETELEM => 12, DELSETELEM => 14, NEWGEN => 15 };

$| = 1;
socket( my $netlink, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER ) or die "watch-admitted: cannot open netlink: $!\n";
setsockopt( $netlink, SOL_SOCKET, SO_RCVBUFFORCE, pack( 'i', 16 * 1024 * 1024 ) );
bind( $netlink, pack( 'S S L L', AF_NETLINK, 0, 0, 1 << ( NFNLGRP_NFTABLES - 1 ) ) )
  or die "watch-admitted: cannot listen to nf_tables: $!\n";
print "ready\n";
while (1) {
    # Messages that were lost show as an error (ENOBUFS): then nothing that follows is worth anything.
    defined recv( $netlink, my $bytes, 1024 * 1024, 0 ) or die "watch-admitted: $!\n";
    while ( length $bytes >= 16 ) {
        my ( $length, $type ) = unpack( 'L S', $bytes );
        last if $length < 16 || $length > length $bytes;
        message( $type & 0xff, substr( $bytes, 16, $length - 16 ) ) if $type >> 8 == 10;
        $bytes = after( $bytes, $length );
    }
}

sub message {
    my ( $type, $body ) = @_;
    my ($family) = unpack( 'C', $body );
    my %fields = attributes( substr( $body, 4 ) );
    if ( $type == NEWGEN ) {
        printf "= %d %d\n", unpack( 'N', $fields{1}[0] ), defined $fields{2} ? unpack( 'N', $fields{2}[0] ) : 0;
        return;
    }
    return unless $family == FAMILY_BRIDGE && defined $fields{1} && text( $fields{1}[0] ) eq TABLE;
    if ( $type == DELTABLE ) { print "0\n" }
    return unless defined $fields{2} && text( $fields{2}[0] ) eq SET;
    if ( $type == DELSET ) { print "0\n" }
    return unless ( $type == NEWSETELEM || $type == DELSETELEM ) && defined $fields{3};
    my %list = attributes( $fields{3}[0] );
    for my $element ( @{ $list{1} } ) {
        my %element = attributes($element);
        my %key     = attributes( $element{1}[0] );
        printf "%s %s\n", $type == NEWSETELEM ? '+' : '-', text( $key{1}[0] );
    }
}

# Attributes by their number; one may be there more than once.
sub attributes {
    my ($bytes) = @_;
    my %found;
    while ( length $bytes >= 4 ) {
        my ( $length, $type ) = unpack( 'S S', $bytes );
        last if $length < 4 || $length > length $bytes;
        push @{ $found{ $type & 0x3fff } }, substr( $bytes, 4, $length - 4 );
        $bytes = after( $bytes, $length );
    }
    return %found;
}

# What follows a message or an attribute: both are padded to four bytes.
sub after {
    my ( $bytes, $length ) = @_;
    my $next = ( $length + 3 ) & ~3;
    return $next < length $bytes ? substr( $bytes, $next ) : '';
}

sub text {
    my ($value) = @_;
    $value =~ s/\0.*//s;
    return $value;
}
