// What can go wrong while an image is built or a VM's disk is made from one.
import { PratiqueError } from '../src/base/errors.ts';

export class ImageError extends PratiqueError {}
