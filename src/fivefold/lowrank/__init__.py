"""Linear layers as products of two thin matrices: conversion, LORO and its relatives, and what became of the layers."""
